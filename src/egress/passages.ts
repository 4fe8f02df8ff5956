import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { egressTexts } from '#errors/egress-texts.ts'
import { egressConnections, egressOpen } from '#platform/metrics.ts'
import type { Places } from '#platform/throttle.ts'
import type { Authenticate } from './authenticate.ts'
import type { EgressGrant } from './grants.ts'
import { hostAndPort } from './hosts.ts'
import { countBytes, type Passage } from './passage.ts'
import { type Destination, readTarget, type Target } from './policy.ts'
import type { Reach } from './reach.ts'
import type { EgressRecords } from './records.ts'
import { clientLeft, EgressRefused } from './refused.ts'

/** The proxy has ended. */
export const proxyEnded = new Error('the proxy ends')

interface PassagesParts {
  authenticate: Authenticate
  reach: Reach
  findRelay: FindRelay
  /** The local address of a client's connection; null if a driver has handed the connection over. */
  ownServerOf(socket: Socket): Passage['ownServer']
  places: Places
  records: EgressRecords
  /** Time to resolve a name and to connect. */
  connectMs: number
}

/**
 * Whether a destination is the relay of an agent, which is reachable whatever its policy, and whether that uses TLS,
 * which this process does not have; null for any other destination.
 */
export type FindRelay = (destination: Destination, agent: EgressGrant) => Promise<{ hasTls: boolean } | null>

/** The connections to hosts. */
export interface Passages {
  /**
   * Runs `use` with a connection to the requested host, and ends the connection afterwards, or when `end` is aborted.
   * Throws EgressRefused, `clientLeft` and `proxyEnded`.
   */
  pass(
    request: IncomingMessage,
    client: Duplex | ServerResponse,
    use: (upstream: Socket, target: Target, end: AbortSignal) => Promise<void>,
  ): Promise<void>
  readonly open: ReadonlySet<Passage>
  /** Ends all connections, and refuses new ones. */
  close(): void
}

export function createPassages(parts: PassagesParts): Passages {
  const { authenticate, reach, findRelay, ownServerOf, places, records, connectMs } = parts
  const open = new Set<Passage>()
  let isClosed = false

  /** Connects within `connectMs`. */
  async function connect(passage: Passage, grant: EgressGrant): Promise<Socket> {
    const { host, port } = passage.asked
    const late = new EgressRefused(504, 'connection_timeout', egressTexts.slow(hostAndPort(host, port)))
    const deadline = new AbortController()
    const timer = setTimeout(() => deadline.abort(late), connectMs)
    const signal = AbortSignal.any([passage.end.signal, deadline.signal])
    return reach(passage, grant, signal).finally(() => clearTimeout(timer))
  }

  return {
    open,
    async pass(request, client, use) {
      const grant = await authenticate(request)
      const target = readTarget(request.method ?? '', request.url ?? '')
      if (!target) throw new EgressRefused(400, 'http_request_error', egressTexts.target)
      const { instanceId, organizationId } = grant
      const { host, port } = target
      const leave = places.take(instanceId, organizationId)
      if (!leave) {
        egressConnections.inc({ verdict: 'blocked', reason: 'places' })
        throw new EgressRefused(429, 'connection_limit_reached', egressTexts.places(hostAndPort(host, port)))
      }
      const relay = await findRelay(target, grant).catch(() => null)
      const passage: Passage = {
        asked: { instanceId, organizationId, host, port },
        isToRelay: relay !== null,
        ownServer: relay && !relay.hasTls ? ownServerOf(request.socket) : null,
        addresses: null,
        upstream: null,
        sent: 0,
        received: 0,
        end: new AbortController(),
      }
      const { signal } = passage.end
      const onClose = () => passage.end.abort(clientLeft)
      client.once('close', onClose)
      open.add(passage)
      egressOpen.inc()
      try {
        if (client.destroyed) throw clientLeft
        if (isClosed) throw proxyEnded
        const upstream = await connect(passage, grant)
        passage.upstream = upstream
        const end = () => upstream.destroy()
        signal.addEventListener('abort', end, { once: true })
        if (signal.aborted) end()
        upstream.on('error', () => {})
        try {
          await use(upstream, target, signal)
        } finally {
          signal.removeEventListener('abort', end)
          upstream.destroy()
          countBytes(records, passage)
        }
      } finally {
        client.off('close', onClose)
        open.delete(passage)
        egressOpen.dec()
        leave()
      }
    },
    close() {
      isClosed = true
      for (const { end } of open) end.abort(proxyEnded)
    },
  }
}
