import { afterAll, expect, test } from 'vitest'
import { maxStarts } from '#lifecycle/attempt/start-limit.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({
  sandboxes: driver,
  timeouts: { startWithoutProgressMs: 60_000, startMs: 60_000 },
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

test('an organization starts half as many gateways at the same time as a worker may, and the others show the step in which they wait', async () => {
  const { key } = await chowder.signUp()
  const list = async (): Promise<{ id: string; status: string; step: string | null }[]> =>
    (await chowder.call('GET', '/v1/instances?limit=100', { key })).body
  const most = maxStarts / 2
  gateway.behaviour.health = 'failing'
  const count = most + 2
  for (let made = 0; made < count; made += 1) await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
  await chowder.startWorker(count)
  const countIn = async (wanted: string) => (await list()).filter(({ step }) => step === wanted).length
  await until(
    'two to wait',
    async () => (await countIn('checkHealth')) === most && (await countIn('waitForStarts')) === 2,
  )
  expect(driver.starts.size).toBe(most)

  gateway.behaviour.health = 'ok'
  await until('all to run', async () => (await list()).every(({ status, step }) => status === 'running' && !step))
  expect([driver.starts.size, ...new Set(driver.starts.values())]).toEqual([count, 1])
})
