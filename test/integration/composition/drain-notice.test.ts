import { expect, onTestFinished, test } from 'vitest'
import { api } from '../../support/api-client.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startHere } from '../../support/started-chowder.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

test('R3: a process that is asked to stop says so in /readyz before its worker drains, and takes requests until then', async () => {
  const database = await cloneDatabase()
  onTestFinished(() => database.drop())
  const sandboxes = new FakeDriver()
  const held = Promise.withResolvers<void>()
  const { url, drain, phases, close } = await startHere(database.connection, sandboxes, {
    DRAIN_SECONDS: '0',
  })
  onTestFinished(() => {
    held.resolve()
    return close()
  })
  const { body } = await api(url).post('/v1/organization/signup', { name: 'Acme' })
  const client = api(url, body.api_key)
  const ready = await client.get('/readyz')
  expect([ready.status, ready.headers.get('connection')]).toEqual([200, 'keep-alive'])

  sandboxes.onCall = (method) => (method === 'create' ? held.promise : undefined)
  await client.patch('/v1/organization', { model_api_keys: { anthropic: 'sk-test' } })
  await client.post('/v1/instances', { name: 'held' })
  await until('the worker to be busy', () => sandboxes.calls.some(({ method }) => method === 'create'))
  const ended = drain.run({ interrupted: false })
  await until('the worker to drain', () => phases().includes('worker'))
  expect(await client.get('/readyz')).toMatchObject({ status: 503, body: { status: 'draining' } })
  const answer = await client.get('/v1/organization')
  expect([answer.status, answer.headers.get('connection')]).toEqual([200, 'close'])
  expect(phases().at(-1)).toBe('worker')

  held.resolve()
  await ended
  await expect(client.get('/readyz')).rejects.toThrow()
})
