import { createServer, type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { egressTexts } from '#errors/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { takeSerially } from '#platform/serial-requests.ts'
import type { PlaceLimits, Places } from '#platform/throttle.ts'
import { createAuthenticate } from './authenticate.ts'
import { forwardRequest } from './forward.ts'
import type { FindEgressGrant } from './grants.ts'
import { startRecheck } from './passage.ts'
import { createPassages, type FindRelay, proxyEnded } from './passages.ts'
import { createReach, type Resolve } from './reach.ts'
import type { EgressRecords } from './records.ts'
import { clientLeft, EgressRefused, refusalHeaders } from './refused.ts'

const keepAliveTimeoutMs = 30_000

/** Limits of outgoing connections. */
export interface EgressLimits {
  /** Time to resolve a name and to connect. */
  connectMs: number
  /** A connection without a byte in either direction is cut after this time. Chats are silent for minutes. */
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
export const defaultEgressPlaces: PlaceLimits = { perInstance: 128, perOrganization: 2000, perSecond: 200 }

interface EgressParts {
  findGrant: FindEgressGrant
  /** Resolves the names that agents choose. */
  resolve: Resolve
  findRelay: FindRelay
  places: Places
  records: EgressRecords
  limits: EgressLimits
  log: Logger
}

/** The proxy through which agents reach the internet. */
export interface Egress {
  /**
   * Serves a connection of the agent of an instance. The caller knows the instance from the connection's source: no
   * data of the client identifies it.
   */
  serveConnection(instanceId: string, socket: Socket): void
  /** Serves a CONNECT to any server with the credentials of the client's instance. Never throws. */
  connect(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void>
  /** The same for a request with a whole URL. */
  answer(request: IncomingMessage, response: ServerResponse): Promise<void>
  /** The number of open connections to hosts. */
  readonly open: number
  /** The number of those to the relay of their agent, here or elsewhere. */
  readonly openToRelay: number
  /** Ends all connections, and refuses new ones. */
  close(): void
}

/**
 * Creates a proxy that listens nowhere: its callers hand requests and connections over to it. It resolves a host here,
 * checks all of its addresses, and connects to one of them. Until `close` a timer checks open connections every half
 * second. A kill loses only the unwritten part of `records`.
 */
export function createEgress(parts: EgressParts): Egress {
  const { findGrant, findRelay, places, records, limits, log } = parts
  /** The instances of the connections that a driver has handed over. */
  const handedOver = new WeakMap<Duplex, string>()
  const authenticate = createAuthenticate(findGrant, (socket) => handedOver.get(socket), log)
  const reach = createReach({ resolve: parts.resolve, records, log })
  const ownServerOf = (socket: Socket) => {
    const { localAddress: address, localPort: port } = socket
    return handedOver.has(socket) || address === undefined || port === undefined ? null : { address, port }
  }
  const passages = createPassages({
    ...{ authenticate, reach, findRelay, ownServerOf, places, records },
    connectMs: limits.connectMs,
  })
  const stopRechecks = startRecheck(passages.open, { findGrant, records })
  const socketsOf = new Map<string, Set<Socket>>()
  let isClosed = false
  /** The server for connections that drivers hand over. It listens nowhere. */
  const server = createServer({ keepAliveTimeout: keepAliveTimeoutMs, requestTimeout: 0 })
  server.setTimeout(limits.silentMs)

  /** The refusal for the client; null if it gets none. */
  function refusalOf(error: unknown): EgressRefused | null {
    if (error === clientLeft || error === proxyEnded) return null
    if (error instanceof EgressRefused) return error
    log.error({ err: error }, 'a connection of an agent failed')
    return new EgressRefused(500, 'proxy_internal_error', egressTexts.unavailable)
  }

  async function connect(request: IncomingMessage, client: Duplex, head: Buffer): Promise<void> {
    client.on('error', () => {})
    request.socket.setTimeout(limits.silentMs)
    try {
      await passages.pass(request, client, async (upstream, _target, end) => {
        client.write('HTTP/1.1 200 Connection Established\r\n\r\n')
        if (head.length > 0) upstream.write(head)
        const ended = Promise.withResolvers<void>()
        const cut = () => {
          client.destroy()
          upstream.destroy()
          ended.resolve()
        }
        end.addEventListener('abort', cut, { once: true })
        client.once('close', cut).once('error', cut).once('timeout', cut)
        upstream.once('close', () => {
          if (!upstream.readableEnded) cut()
          else if (client.writableFinished) ended.resolve()
          else client.once('finish', ended.resolve)
        })
        client.pipe(upstream)
        upstream.pipe(client)
        await ended.promise
      })
    } catch (error) {
      const refusal = refusalOf(error)
      if (!refusal || client.destroyed) return void client.destroy()
      const lines = Object.entries(refusalHeaders(refusal)).map(([name, value]) => `${name}: ${value}\r\n`)
      const { status, message } = refusal
      client.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines.join('')}\r\n${message}\n`)
    }
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    response.on('error', () => {})
    try {
      await passages.pass(request, response, async (socket, { request: asked }) => {
        await forwardRequest(request, response, {
          socket,
          path: asked?.path ?? '/',
          hostHeader: asked?.hostHeader ?? '',
        })
      })
    } catch (error) {
      const refusal = response.headersSent || response.destroyed ? null : refusalOf(error)
      if (!refusal) return void response.destroy()
      response.writeHead(refusal.status, refusalHeaders(refusal)).end(`${refusal.message}\n`)
    }
  }

  takeSerially(server)
  server.on('connect', (request, client, head) => void (client.destroyed || connect(request, client, head)))
  server.on('request', (request, response) => void (request.socket.destroyed || answer(request, response)))

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
      return passages.open.size
    },
    get openToRelay() {
      return Array.from(passages.open).filter(({ isToRelay }) => isToRelay).length
    },
    close() {
      isClosed = true
      stopRechecks()
      passages.close()
      for (const held of socketsOf.values()) for (const socket of held) socket.destroy()
    },
  }
}
