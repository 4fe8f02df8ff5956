import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { contractCommand, contractDriver } from '../support/docker-host.ts'
import { startDockerd, type TestDockerd, whyNoDockerd } from '../support/dockerd.ts'
import { describeDriver } from '../support/driver-contract.ts'
import { until } from '../support/until.ts'

const within = (ms = 20_000) => AbortSignal.timeout(ms)
const minute = 60_000

const missing = await whyNoDockerd()
if (missing) console.warn(`sandboxes in containers are not tested: ${missing}`)

describe.skipIf(missing)('with a dockerd', () => {
  let dockerd: TestDockerd

  beforeAll(async () => {
    dockerd = await startDockerd()
    await contractDriver(dockerd.host, 'image').prepare('v1', () => {}, within(5 * minute))
  }, 15 * minute)
  afterAll(() => dockerd.close(), minute)

  describeDriver('docker', async () => {
    const driver = contractDriver(dockerd.host, randomUUID())
    const ask = async (id: string, path: string) => {
      const { inside } = await driver.observe(id, within())
      const script = `const url = 'http://127.0.0.1:${inside?.port}${path}'
        const ask = (left) => fetch(url).then((answer) => answer.text()).then(console.log, () => left && setTimeout(ask, 50, left - 1))
        ask(100)`
      return driver.exec(id, [inside?.node ?? 'node', '-e', script], { timeoutMs: 10_000 }, within())
    }
    return {
      driver,
      command: (inside) => contractCommand(inside),
      endGateway: async (id, _seen, code) => {
        await ask(id, '/whoami')
        await ask(id, `/exit/${code}`).catch(() => {})
      },
      gatewayOf: async (id) => (await ask(id, '/whoami')).stdout,
      runsPrograms: true,
      close: async () => {},
    }
  })
})
