import { createServer } from 'node:http'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { createDockerClient } from '#sandbox/docker/docker-client.ts'
import { firewalledNetwork } from '#sandbox/docker/network.ts'
import { listenLocally } from '../../support/local-server.ts'

const closed = { 'com.docker.network.bridge.enable_icc': 'false' }
/** What the stub of dockerd knows about the network. */
let known: object
const server = createServer((_, answer) =>
  answer.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(known)),
)
let dockerd: Awaited<ReturnType<typeof listenLocally>>

beforeAll(async () => {
  dockerd = await listenLocally(server)
})
afterAll(() => dockerd.close())

const make = () => {
  const client = createDockerClient({ host: dockerd.url.replace('http', 'tcp'), tls: null })
  return firewalledNetwork(client, 'agents', { of: 'agents', reachable: false, relay: null }).make(
    AbortSignal.timeout(5000),
  )
}

test('S22: an existing network with IPv6, for which there are no firewall rules, is refused', async () => {
  known = { Id: 'f'.repeat(64), Driver: 'bridge', EnableIPv6: true, Options: closed }
  await expect(make()).rejects.toMatchObject({ name: 'StartupError', message: expect.stringContaining('has IPv6') })
})

test.each([true, false])(
  'an existing network whose containers do not reach each other is used, internal: %s',
  async (internal) => {
    known = { Id: 'f'.repeat(64), Driver: 'bridge', Internal: internal, EnableIPv6: false, Options: closed }
    await expect(make()).resolves.toMatchObject({ internal })
  },
)

test('an existing network whose containers reach each other is refused', async () => {
  known = { Id: 'f'.repeat(64), Driver: 'bridge', EnableIPv6: false, Options: {} }
  await expect(make()).rejects.toThrow('lets its containers reach each other')
})
