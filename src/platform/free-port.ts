import { randomInt } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:net'

/** Below the ports that Linux assigns to connections. */
const [firstSteady, lastSteady] = [20_000, 32_000]

/** A TCP port of 127.0.0.1 without a listener at the moment. */
export async function freePort(wanted = 0): Promise<number> {
  const server = createServer().listen(wanted, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  await new Promise((resolve) => server.close(resolve))
  if (address === null || typeof address === 'string') throw new Error('no free port on 127.0.0.1')
  return address.port
}

/** Returns a free port for later use: the system assigns it to no connection meanwhile. */
export async function steadyFreePort(): Promise<number> {
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const port = await freePort(randomInt(firstSteady, lastSteady)).catch(() => null)
    if (port !== null) return port
  }
  return freePort()
}
