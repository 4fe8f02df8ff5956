import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Endpoint } from '../../src/sandbox/driver.ts'

/** Answers `/healthz` and `/startupz` as a gateway does, for tests that need no more of one. */
export async function startHealthServer() {
  const state = { live: true, ready: true }
  const server = createServer((request, response) => {
    const ok = request.url === '/healthz' ? state.live : request.url === '/startupz' && state.ready
    response.writeHead(ok ? 200 : 503).end('{}')
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const endpoint: Endpoint = { kind: 'tcp', host: '127.0.0.1', port }
  return {
    state,
    endpoint,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
