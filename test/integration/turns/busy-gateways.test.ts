import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, expect, test } from 'vitest'
import { defaultTurnTimeouts } from '#turns/turn.ts'
import { api, say, sessionPath, waitForStatus } from '../../support/api-client.ts'
import { findGateway } from '../../support/chowder-process.ts'
import { openStubSandboxes, startStubProvider } from '../../support/stub-agents.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

// The chaos suite repeats this with all limits as they are.
const turnTimeouts = { ...defaultTurnTimeouts, silenceMs: 1000, probeEveryMs: 1000 }

const sandboxes = await openStubSandboxes()
const provider = await startStubProvider()
const timeouts = { hungMs: 4000 }
const chowder = await openTestChowder({ sandboxes: sandboxes.driver, relayUrl: provider.url, timeouts, turnTimeouts })
await chowder.startWorker()
const url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
const client = api(url, (await chowder.signUp()).key)
afterAll(async () => {
  await chowder.close()
  await provider.close()
  await sandboxes.close()
})

async function running() {
  const { id } = (await client.post('/v1/instances', { name: 'x' })).body
  await waitForStatus(client, id, 'running')
  const pid = (await findGateway(id))?.pid
  if (!pid) throw new Error(`${id} has no gateway`)
  const restarted = async () => ![undefined, pid].includes((await findGateway(id))?.pid)
  return { id, pid, restarted }
}
const stepOf = async (id: string) => (await client.get(`/v1/instances/${id}/status`)).body.step

test.concurrent('a gateway that is kept busy by its own work survives with its turn, and turns wait for it', async () => {
  const { id, pid } = await running()
  const hello = (session: string) => say(client, sessionPath(id, session), 'hello')
  await Promise.all(['main', 'other'].map(hello)) // a kept connection would be closed as idle after the work
  const working = say(client, sessionPath(id), 'run for 20 s')
  await sleep(500)
  const soon = hello('other')
  await until('it to be shown', async () => (await stepOf(id)) === 'busy', 20_000)
  const answers = await Promise.all([working, soon, ...['main', 'other'].map(hello)])
  expect(answers).toEqual(Array(4).fill('Hello'))
  expect((await findGateway(id))?.pid).toBe(pid)
})

test.concurrent('a gateway that is stopped is restarted, and its turns answer 504', async () => {
  const { id, pid, restarted } = await running()
  process.kill(pid, 'SIGSTOP')
  const turns = ['main', 'main', 'other'].map((session) =>
    client.post(sessionPath(id, session), { model: 'openclaw', input: 'hello' }),
  )
  await until('a restart', restarted, 40_000)
  for (const { status, body } of await Promise.all(turns))
    expect([status, body.error.code]).toEqual([504, 'gateway_timeout'])
  await waitForStatus(client, id, 'running')
  expect(await say(client, sessionPath(id), 'hello')).toBe('Hello')
})
