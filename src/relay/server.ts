import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { request } from 'undici'
import { StartupError } from '#errors/startup-error.ts'
import { explainListening } from '#platform/listen-fault.ts'
import { poll } from '#platform/poll.ts'
import { takeSerially } from '#platform/serial-requests.ts'
import { startRechecks } from '#platform/throttle.ts'
import { boundConnections, type ConnectionLimits } from './connections.ts'
import type { Relay } from './relay.ts'
import { silenceMs } from './upstreams.ts'

/** For the header of a request; its body may come as slowly as a vendor accepts it. */
const headersTimeoutMs = 10_000
/** Longer than clients keep an unused connection. */
const keepAliveTimeoutMs = 75_000
const probeTimeoutMs = 1000
const pauseMs = 50
/**
 * Time for the proxy to pass on a call that has not reached the relay, or the rest of an answer, within the part of the
 * drain's phase beyond the time of turns.
 */
const passOnMs = 1500

/** Longer than a vendor may be silent. */
export const defaultConnections: ConnectionLimits = { max: 10_000, silentMs: silenceMs + 60_000 }

/** The path at which a relay names its installation. */
const identityPath = '/relay'

export interface RelayServer {
  readonly port: number
  /** Serves a connection that another server has accepted. */
  serve(socket: Socket): void
  /**
   * Listens no more, gives open calls so many ms to end, and cuts those that are left. While none is open, it waits
   * 1.5 s at most for what the proxy still passes on: an answer, or a call, which then has the rest of the time to end.
   */
  close(drainMs: number): Promise<void>
}

interface ListenOptions {
  host: string
  port: number
  /** The id of the installation. */
  installation: string
  connections: ConnectionLimits
  /** Serves requests to other hosts; null refuses them. */
  proxy: ForwardProxy | null
}

/** A proxy that listens at the relay's port: agents that can reach only this port reach both. */
export interface ForwardProxy {
  connect(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void>
  answer(request: IncomingMessage, response: ServerResponse): Promise<void>
  /** The number of connections to relays, which may still have a part of an answer to pass on. */
  readonly openToRelay: number
}

/** The installation of the relay at a URL; null if nothing listens there, and '' for anything else. */
export async function installationAt(url: string): Promise<string | null> {
  try {
    const { statusCode, body } = await request(`${url}${identityPath}`, { signal: AbortSignal.timeout(probeTimeoutMs) })
    const text = await body.text()
    const { installation } = statusCode === 200 ? JSON.parse(text) : {}
    return typeof installation === 'string' ? installation : ''
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ECONNREFUSED' ? null : ''
  }
}

/** The URL at which a process that listens on this address reaches itself. */
function ownUrl(host: string, port: number): string {
  const names: Record<string, string> = { '0.0.0.0': '127.0.0.1', '::': '[::1]' }
  return `http://${names[host] ?? (host.includes(':') ? `[${host}]` : host)}:${port}`
}

/**
 * Listens for the calls of agents. The relays of one installation on one host share the port: a new one listens before
 * the old one ends. Throws StartupError when anything else listens there, or it cannot listen.
 */
export async function serveRelay(
  relay: Relay,
  { host, port, installation, connections, proxy }: ListenOptions,
): Promise<RelayServer> {
  const address = { host, port, hostVariable: 'RELAY_URL', portVariable: 'RELAY_PORT' }
  const other = await installationAt(ownUrl(host, port))
  if (other !== null && other !== '' && other !== installation) {
    throw new StartupError(
      `Port ${port} on ${host} is the relay of another Chowder. Set RELAY_PORT to a free one: the agents follow it.`,
    )
  }
  const identity = JSON.stringify({ installation })
  const server = createServer(
    { headersTimeout: headersTimeoutMs, keepAliveTimeout: keepAliveTimeoutMs },
    (asked, reply) => {
      if (asked.socket.destroyed) return
      if (proxy && asked.url?.startsWith('/') === false) return void proxy.answer(asked, reply)
      if (asked.method !== 'GET' || asked.url !== identityPath) return void relay.answer(asked, reply)
      reply.writeHead(200, { 'content-type': 'application/json', connection: 'close' }).end(identity)
    },
  )
  takeSerially(server)
  const isUsed = boundConnections(server, connections)
  /** Open tunnels, which the server no longer tracks. */
  const tunnels = new Set<Duplex>()
  if (proxy)
    server.on('connect', (asked, client, head) => {
      if (client.destroyed) return
      isUsed(asked.socket)
      tunnels.add(client)
      client.once('close', () => tunnels.delete(client))
      void proxy.connect(asked, client, head)
    })
  server.listen({ host, port, reusePort: true })
  await once(server, 'listening').catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'EADDRNOTAVAIL') {
      throw new StartupError(
        `${host} is no address of this machine. Set RELAY_URL to where agents reach this machine, such as http://10.1.0.2:${port}.`,
        { cause: error },
      )
    }
    throw explainListening(error, address)
  })
  const stopRechecks = startRechecks(() => relay.recheck())
  return {
    port,
    serve: (socket) => void server.emit('connection', socket),
    async close(drainMs) {
      const closed = new Promise((resolve) => server.close(resolve))
      server.closeIdleConnections()
      const endsAt = performance.now() + drainMs
      let lastOpenAt = performance.now()
      const hasEnded = () => {
        server.closeIdleConnections()
        const now = performance.now()
        if (relay.open > 0) {
          lastOpenAt = now
          return now >= endsAt
        }
        return (proxy?.openToRelay ?? 0) === 0 || now - lastOpenAt >= passOnMs
      }
      if (drainMs > 0) await poll(hasEnded, { pauseMs, timeoutMs: drainMs + passOnMs })
      stopRechecks()
      server.closeAllConnections()
      for (const tunnel of tunnels) tunnel.destroy()
      await closed
    },
  }
}
