import { afterAll, beforeAll, expect, test } from 'vitest'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

let gateway: FakeGateway
let driver: FakeDriver
let chowder: TestChowder

beforeAll(async () => {
  gateway = await startFakeGateway({})
  driver = new FakeDriver(() => gateway.endpoint)
  chowder = await openTestChowder({ sandboxes: driver, timeouts: { startWithoutProgressMs: 60_000, startMs: 60_000 } })
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

test('a gateway that ends while many start waits for its next start, with a step of its own', async () => {
  const { key } = await chowder.signUp()
  const list = async (): Promise<{ id: string; status: string; step: string | null }[]> =>
    (await chowder.call('GET', '/v1/instances?limit=50', { key })).body
  gateway.behaviour.health = 'failing'
  for (let count = 0; count < 12; count += 1) await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
  await chowder.startWorker(8)
  await until('all to start', async () => (await list()).every(({ step }) => step === 'checkHealth'))

  const [ended = { id: '' }] = await list()
  driver.die(ended.id)
  const stepOf = async () => (await list()).find(({ id }) => id === ended.id)?.step
  await until('the next start to wait', async () => (await stepOf()) === 'waitForStarts')
  expect(chowder.logged.filter((line) => line.includes('fewer start at the same time'))).toHaveLength(1)
  expect(driver.starts.get(ended.id)).toBe(1)

  gateway.behaviour.health = 'ok'
  await until('all to run', async () => (await list()).every(({ status, step }) => status === 'running' && !step))
  expect(driver.starts.get(ended.id)).toBe(2)
})
