import { createServer, type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import { isIP } from 'node:net'
import type { Duplex } from 'node:stream'
import { egressTexts } from '#platform/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { egressBytes, egressConnections, egressOpen } from '#platform/metrics.ts'
import type { PlaceLimits, Places } from '#relay/places.ts'
import { createRefusals } from '#relay/refusals.ts'
import { connectTo } from './connect.ts'
import { isSameToken, readCredentials } from './credentials.ts'
import { forwardRequest } from './forward.ts'
import type { EgressGrant, FindEgressGrant } from './grants.ts'
import { type HostRule, hostAndPort, matches } from './hosts.ts'
import { type BlockReason, createDecide, type Destination } from './policy.ts'
import type { Asked, EgressRecords } from './records.ts'
import { type Resolve, resolveOfOperator } from './resolve.ts'
import { readTarget, type Target } from './target.ts'

const keepAliveTimeoutMs = 30_000
/** With the time that a policy is cached, open connections that are no longer allowed end within a second. */
const recheckEveryMs = 500

/** The bounds of what goes out. */
export interface EgressLimits {
  /** To look a name up and to connect. */
  connectMs: number
  /** A connection without a byte either way for so long is cut. Chats say nothing for minutes. */
  silentMs: number
  /** Connections of one sandbox that a driver hands over. */
  handedOverPerInstance: number
}

export const defaultEgressLimits: EgressLimits = {
  connectMs: 10_000,
  silentMs: 10 * 60_000,
  handedOverPerInstance: 256,
}
/** An agent that installs packages opens some dozens. */
export const defaultEgressPlaces: PlaceLimits = { perInstance: 128, perOrganization: 2000 }

interface EgressParts {
  findGrant: FindEgressGrant
  /** Looks up the names that agents choose. */
  resolve: Resolve
  /** The hosts that agents may reach though they are not public. */
  operatorHosts: readonly HostRule[]
  /** Whether it is the address of the relay for agents: they reach it whatever their policy. */
  isRelay(destination: Destination): Promise<boolean>
  places: Places
  records: EgressRecords
  limits: EgressLimits
  log: Logger
}

/** The proxy through which agents reach the internet. */
export interface Egress {
  /**
   * Serves a connection of the agent of an instance, which the caller knows from where it came: nothing that the client
   * sends says whose it is.
   */
  serveConnection(instanceId: string, socket: Socket): void
  /** Serves a CONNECT to any server, whose client shows the credentials of its instance. Never throws. */
  connect(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void>
  /** The same for a request with a whole URL. */
  answer(request: IncomingMessage, response: ServerResponse): Promise<void>
  /** The number of open connections to hosts. */
  readonly open: number
  /** Ends all connections, and takes no more. */
  close(): void
}

/** The connection is refused, or could not be made. */
class EgressRefused extends Error {
  readonly status: number
  /** The word of RFC 9209 for the header Proxy-Status. */
  readonly word: string

  constructor(status: number, word: string, message: string) {
    super(message)
    this.status = status
    this.word = word
  }
}

/** A connection to a host, from when its client has asked until it ends. */
interface Passage {
  asked: Asked
  isToRelay: boolean
  addresses: string[] | null
  upstream: Socket | null
  /** Bytes that are counted already. */
  sent: number
  received: number
  end: AbortController
}

const clientLeft = new Error('the client left')
const closed = new Error('the proxy ends')

const words: Record<BlockReason, string> = {
  egress_none: 'http_request_denied',
  not_listed: 'http_request_denied',
  port: 'http_request_denied',
  mail_port: 'http_request_denied',
  private_address: 'destination_ip_prohibited',
}

/**
 * Creates a proxy, which listens nowhere: its callers hand it requests and connections. A host is looked up here, all
 * of its addresses are checked, and one of those is connected to. Until `close` a timer looks at open connections every
 * half second. A kill loses what `records` has not written, and nothing else.
 */
export function createEgress(parts: EgressParts): Egress {
  const { findGrant, operatorHosts, places, records, limits, log } = parts
  const decide = createDecide(operatorHosts)
  const refusals = createRefusals()
  const open = new Set<Passage>()
  /** The instances of the connections that a driver has handed over. */
  const handedOver = new WeakMap<Duplex, string>()
  const socketsOf = new Map<string, Set<Socket>>()
  let isClosed = false
  /** For the connections that are handed over. It listens nowhere. */
  const server = createServer({ keepAliveTimeout: keepAliveTimeoutMs, requestTimeout: 0 })
  server.setTimeout(limits.silentMs)

  async function find(instanceId: string): Promise<EgressGrant | null> {
    return findGrant(instanceId).catch((error: unknown) => {
      log.warn({ err: error }, 'what an agent may reach could not be looked up')
      throw new EgressRefused(503, 'proxy_internal_error', egressTexts.unavailable)
    })
  }

  /** Who asks. Throws EgressRefused. */
  async function authenticate(request: IncomingMessage): Promise<EgressGrant> {
    const known = handedOver.get(request.socket)
    const shown = known === undefined ? readCredentials(request.headers['proxy-authorization']) : null
    const grant = await find(known ?? shown?.instanceId ?? '')
    if (grant && (known !== undefined || isSameToken(shown?.token ?? '', grant.token))) return grant
    if (known !== undefined) throw new EgressRefused(403, 'http_request_denied', egressTexts.stopped)
    // Many clients show their credentials only after a first refusal.
    if (shown !== null && !(await refusals.wait())) throw clientLeft
    throw new EgressRefused(407, 'http_request_denied', egressTexts.credentials)
  }

  function refuse(asked: Asked, reason: BlockReason): EgressRefused {
    records.note(asked, 'blocked', reason)
    egressConnections.inc({ verdict: 'blocked', reason })
    const place = hostAndPort(asked.host, asked.port)
    return new EgressRefused(403, words[reason], egressTexts.blocked[reason]({ place, instanceId: asked.instanceId }))
  }

  async function lookUp({ asked, isToRelay }: Passage, signal: AbortSignal): Promise<string[]> {
    const { host, port } = asked
    const isOfOperator = isToRelay || matches(operatorHosts, host, port)
    const { promise: aborted, reject } = Promise.withResolvers<never>()
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await Promise.race([isOfOperator ? resolveOfOperator(host) : parts.resolve(host), aborted])
    } catch (error) {
      if (signal.aborted) throw signal.reason
      log.debug({ err: error }, 'a name that an agent asked for has no address')
      throw new EgressRefused(502, 'dns_error', egressTexts.unknownHost(host))
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  /** Connects to what the client asks for, if its instance may reach it. Throws EgressRefused. */
  async function reach(passage: Passage, { rules }: EgressGrant, signal: AbortSignal): Promise<Socket> {
    const { asked, isToRelay } = passage
    const { host, port } = asked
    const place = hostAndPort(host, port)
    if (!isToRelay) {
      const byName = decide(rules, asked, null)
      if (!byName.isAllowed) throw refuse(asked, byName.reason)
    }
    const addresses = isIP(host) === 0 ? await lookUp(passage, signal) : [host]
    passage.addresses = addresses
    if (!isToRelay) {
      const decision = decide(rules, asked, addresses)
      if (!decision.isAllowed) throw refuse(asked, decision.reason)
      const verdict = rules.mode === 'report' && !decision.isListed ? 'reported' : 'allowed'
      records.note(asked, verdict)
      egressConnections.inc({ verdict, reason: '' })
    }
    try {
      return await connectTo(host, addresses, port, signal)
    } catch (error) {
      if (signal.aborted) throw error
      const code = String((error as NodeJS.ErrnoException).code ?? 'no connection')
      throw new EgressRefused(502, 'connection_refused', egressTexts.unreachable(place, code))
    }
  }

  function countBytes(passage: Passage): void {
    const { upstream, asked } = passage
    if (!upstream) return
    const [sent, received] = [upstream.bytesWritten - passage.sent, upstream.bytesRead - passage.received]
    if (sent + received === 0) return
    passage.sent += sent
    passage.received += received
    egressBytes.inc({ direction: 'sent' }, sent)
    egressBytes.inc({ direction: 'received' }, received)
    if (!passage.isToRelay) records.noteBytes(asked, { sent, received })
  }

  /** Runs `use` with a connection to what a client asks for, and ends the connection after it. Throws EgressRefused. */
  async function pass(
    request: IncomingMessage,
    client: Duplex | ServerResponse,
    use: (upstream: Socket, target: Target, passage: Passage) => Promise<void>,
  ): Promise<void> {
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
    const passage: Passage = {
      asked: { instanceId, organizationId, host, port },
      isToRelay: await parts.isRelay(target).catch(() => false),
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
      if (client.destroyed || isClosed) throw clientLeft
      const late = new EgressRefused(504, 'connection_timeout', egressTexts.slow(hostAndPort(host, port)))
      const deadline = new AbortController()
      const timer = setTimeout(() => deadline.abort(late), limits.connectMs)
      const upstream = await reach(passage, grant, AbortSignal.any([signal, deadline.signal])).finally(() =>
        clearTimeout(timer),
      )
      passage.upstream = upstream
      const end = () => upstream.destroy()
      signal.addEventListener('abort', end, { once: true })
      if (signal.aborted) end()
      upstream.on('error', () => {})
      try {
        await use(upstream, target, passage)
      } finally {
        signal.removeEventListener('abort', end)
        upstream.destroy()
        countBytes(passage)
      }
    } finally {
      client.off('close', onClose)
      open.delete(passage)
      egressOpen.dec()
      leave()
    }
  }

  const bodyOf = (error: unknown) => {
    if (error === clientLeft || error === closed) return null
    if (error instanceof EgressRefused) return error
    log.error({ err: error }, 'a connection of an agent failed')
    return new EgressRefused(500, 'proxy_internal_error', egressTexts.unavailable)
  }

  const headersOf = ({ status, word, message }: EgressRefused) => ({
    'content-type': 'text/plain; charset=utf-8',
    'content-length': String(Buffer.byteLength(message) + 1),
    connection: 'close',
    'proxy-status': `chowder; error=${word}`,
    ...(status === 407 && { 'proxy-authenticate': 'Basic realm="egress"' }),
  })

  async function connect(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void> {
    client.on('error', () => {})
    request.socket.setTimeout(limits.silentMs)
    try {
      await pass(request, client, async (upstream, _target, { end }) => {
        client.write('HTTP/1.1 200 Connection Established\r\n\r\n')
        if (head.length > 0) upstream.write(head)
        const ended = Promise.withResolvers<void>()
        const cut = () => {
          client.destroy()
          upstream.destroy()
          ended.resolve()
        }
        end.signal.addEventListener('abort', cut, { once: true })
        client.once('close', cut).once('error', cut).once('timeout', cut)
        upstream.once('close', () => {
          if (upstream.readableEnded) ended.resolve()
          else cut()
        })
        client.pipe(upstream)
        upstream.pipe(client)
        await ended.promise
      })
    } catch (error) {
      const refusal = bodyOf(error)
      if (!refusal || client.destroyed) return void client.destroy()
      const lines = Object.entries(headersOf(refusal)).map(([name, value]) => `${name}: ${value}\r\n`)
      const { status, message } = refusal
      client.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${message}\n`)
    }
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {})
    try {
      await pass(request, response, async (socket, { request: asked }) => {
        await forwardRequest(request, response, {
          socket,
          path: asked?.path ?? '/',
          hostHeader: asked?.hostHeader ?? '',
        })
      })
    } catch (error) {
      const refusal = response.headersSent || response.destroyed ? null : bodyOf(error)
      if (!refusal) return void response.destroy()
      response.writeHead(refusal.status, headersOf(refusal)).end(`${refusal.message}\n`)
    }
  }

  /** Ends the connections whose instances may no longer have them. */
  async function recheck(): Promise<void> {
    await Promise.all(
      [...open].map(async (passage) => {
        countBytes(passage)
        const { asked, addresses, isToRelay, end } = passage
        // While the database is away, what was allowed stays allowed.
        const grant = await findGrant(asked.instanceId).catch(() => undefined)
        if (grant === undefined || !open.has(passage)) return
        if (grant === null) return end.abort(new EgressRefused(403, 'http_request_denied', egressTexts.stopped))
        if (isToRelay) return
        const decision = decide(grant.rules, asked, addresses)
        if (!decision.isAllowed) end.abort(refuse(asked, decision.reason))
      }),
    )
  }

  server.on('connect', (request, client, head) => void connect(request, client, head))
  server.on('request', (request, response) => void answer(request, response))
  let isChecking = false
  const rechecking = setInterval(() => {
    if (isChecking) return
    isChecking = true
    void recheck().finally(() => {
      isChecking = false
    })
  }, recheckEveryMs).unref()

  return {
    connect,
    answer,
    serveConnection(instanceId, socket) {
      const held = socketsOf.get(instanceId) ?? new Set()
      if (isClosed || held.size >= limits.handedOverPerInstance) return void socket.destroy()
      socketsOf.set(instanceId, held.add(socket))
      socket.once('close', () => {
        held.delete(socket)
        if (held.size === 0 && socketsOf.get(instanceId) === held) socketsOf.delete(instanceId)
      })
      handedOver.set(socket, instanceId)
      server.emit('connection', socket)
    },
    get open() {
      return open.size
    },
    close() {
      isClosed = true
      clearInterval(rechecking)
      for (const { end } of open) end.abort(closed)
      for (const held of socketsOf.values()) for (const socket of held) socket.destroy()
    },
  }
}
