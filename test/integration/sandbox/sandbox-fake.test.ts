import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { describeDriver } from '../../support/driver-contract.ts'
import { FakeDriver } from '../../support/fake-driver.ts'

describeDriver('fake', async () => {
  const driver = new FakeDriver()
  return {
    driver,
    command: () => ['gateway'],
    endGateway: async (id, _seen, code) => driver.die(id, code),
    gatewayOf: async (id) => driver.starts.get(id),
    setLoop: async (_id, _seen, loop) => {
      driver.loop = loop === 'waits' ? 'computes' : loop
    },
    runsPrograms: false,
    keepsLimits: false,
    close: async () => {},
  }
})

const specOf = (id: string) => ({
  id,
  organizationId: randomUUID(),
  release: 'v1',
  command: () => ['gateway'],
  env: () => ({}),
  resources: { memoryMb: 1, cpus: 1, pids: 1, diskMb: 0 },
  labels: {},
})
const signal = AbortSignal.timeout(30_000)

test('a fault occurs before or after the effect, as often as it was set', async () => {
  const driver = new FakeDriver()
  const id = randomUUID()
  driver.fail({ method: 'create', error: new Error('refused'), times: 2 })
  await expect(driver.create(specOf(id), signal)).rejects.toThrow('refused')
  await expect(driver.create(specOf(id), signal)).rejects.toThrow('refused')
  expect(driver.sandboxes.size).toBe(0)
  driver.fail({ method: 'create', when: 'after' })
  await expect(driver.create(specOf(id), signal)).rejects.toThrow()
  await driver.create(specOf(id), signal)
  expect(driver.creations.get(id)).toBe(1)
})

test('a call that hangs ends when it is aborted', async () => {
  const driver = new FakeDriver()
  driver.fail({ method: 'observe', hangMs: 60_000 })
  const abort = new AbortController()
  const call = driver.observe(randomUUID(), abort.signal)
  const reason = new Error('enough')
  abort.abort(reason)
  await expect(call).rejects.toBe(reason)
})
