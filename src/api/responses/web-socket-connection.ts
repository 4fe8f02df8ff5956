import type { FastifyReply, FastifyRequest } from 'fastify'
import type { WebSocket } from 'ws'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { onKeyRefused } from '#http/auth.ts'
import { toAppError } from '#http/errors.ts'
import type { InFlight } from '#http/in-flight.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import { openStreams } from '#platform/metrics.ts'
import type { Vault } from '#platform/secrets.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { maxTurnBytes } from '#turns/route.ts'
import { type Turn, turnAbandoned } from '#turns/turn.ts'
import type { Turns } from '#turns/turns.ts'
import type { ResponseEvent } from './format/response-writer.ts'
import { requestedSessionKey } from './format/session.ts'
import { runResponse } from './run-response.ts'
import type { ResponseStore } from './store/response-store.ts'
import { errorFrame, type ReadFrame } from './web-socket-frames.ts'

/** Maximum frames that wait while a turn runs. Together they may be as large as one request. */
const maxWaitingFrames = 4
/** Unsent bytes above which the agent waits for the client. */
const maxUnsentBytes = 64 * 1024
/**
 * Maximum frames in a row that begin no turn: the client does not read its errors, and each costs as much as a request.
 */
const maxRefusedInARow = 100
const pingEveryMs = 30_000
/** The last events of a turn that did not fail. */
const answerEnds: ReadonlySet<string> = new Set(['response.completed', 'response.incomplete'])
const maxConnectionMs = 60 * 60_000

export const closeCodes = { policyViolation: 1008, serviceRestart: 1012 } as const

export interface ConnectionDeps {
  turns: Turns
  store: ResponseStore
  vault: Vault
  watches: Watches
  db: Db
  /** The base URL for clients. */
  publicUrl(): string
  readFrame: ReadFrame
  countTurn: ((request: FastifyRequest, reply: FastifyReply) => Promise<void>) | undefined
  inFlight: InFlight | undefined
}

interface Frame {
  data: Buffer
  isBinary: boolean
}

/** A reply for the counting of requests, which sets headers that a WebSocket cannot send. */
const replyWithoutHeaders = {
  header: () => replyWithoutHeaders,
  getHeader: () => undefined,
} as unknown as FastifyReply

/**
 * An open WebSocket, which runs its turns one after the other. A turn that fails before it begins is an `error` frame,
 * and the connection stays open.
 */
export class WebSocketConnection {
  readonly #deps: ConnectionDeps
  readonly #socket: WebSocket
  readonly #request: FastifyRequest
  readonly #instanceId: string
  /** The session in the path. */
  readonly #sessionId: string | undefined
  readonly #waiting: Frame[] = []
  #waitingBytes = 0
  #turn: Turn | null = null
  #isRunning = false
  /** Frames without a turn since the last turn. */
  #refusedInARow = 0
  /** The latest response with `store: false`, which no other connection knows. */
  #unstoredId: string | null = null
  #isAlive = true
  /** The reason why no further turn begins. The client gets it, and the close, after the running turn. */
  #end: { code: number; reason: AppError } | null = null
  #cutOff: NodeJS.Timeout | undefined

  constructor(deps: ConnectionDeps, socket: WebSocket, request: FastifyRequest, sessionId: string | undefined) {
    this.#deps = deps
    this.#socket = socket
    this.#request = request
    this.#instanceId = (request.params as { instance_id: string }).instance_id
    this.#sessionId = sessionId
    onKeyRefused(request.caller, socket, deps.turns.findCaller, (reason) => {
      this.#turn?.end(reason)
      this.end(closeCodes.policyViolation, reason)
    })
    const tooOld = new AppError('websocket_connection_limit_reached', errorTexts.connectionTooOld)
    const lifetime = setTimeout(() => this.end(closeCodes.policyViolation, tooOld), maxConnectionMs)
    const pings = setInterval(() => this.#ping(), pingEveryMs)
    socket.on('pong', () => {
      this.#isAlive = true
    })
    socket.on('message', (data: Buffer, isBinary: boolean) => this.#receive({ data, isBinary }))
    socket.on('close', () => {
      clearTimeout(lifetime)
      clearTimeout(this.#cutOff)
      clearInterval(pings)
      this.#waiting.length = 0
      this.#turn?.end(turnAbandoned)
    })
  }

  /** Begins no further turn, and closes after the running one. Only the first reason counts. */
  end(code: number, reason: AppError): void {
    this.#end ??= { code, reason }
    this.#waiting.length = 0
    this.#closeIfEnded()
  }

  #closeIfEnded(): void {
    const socket = this.#socket
    if (!this.#end || this.#isRunning || socket.readyState === socket.CLOSED) return
    this.#cutOff ??= setTimeout(() => socket.terminate(), this.#deps.turns.graceMs)
    if (socket.readyState !== socket.OPEN) return
    socket.send(this.#errorFrame(this.#end.reason))
    socket.close(this.#end.code)
  }

  #ping(): void {
    // A client with unsent bytes may not have received the last ping yet.
    if (!this.#isAlive && this.#socket.bufferedAmount === 0) {
      this.#socket.terminate()
    } else {
      this.#isAlive = false
      this.#socket.ping()
    }
  }

  #receive(frame: Frame): void {
    if (this.#end || this.#socket.readyState !== this.#socket.OPEN) return
    const isTooMuch = this.#waiting.length >= maxWaitingFrames || this.#waitingBytes + frame.data.length > maxTurnBytes
    if (isTooMuch) {
      this.#sendError(new AppError('too_much_in_flight', errorTexts.tooManyWaiting))
      return
    }
    this.#waiting.push(frame)
    this.#waitingBytes += frame.data.length
    void this.#runWaiting()
  }

  async #runWaiting(): Promise<void> {
    if (this.#isRunning) return
    this.#isRunning = true
    for (let frame = this.#waiting.shift(); frame && !this.#end; frame = this.#waiting.shift()) {
      this.#waitingBytes -= frame.data.length
      await this.#run(frame).catch((error: unknown) => {
        if (this.#socket.readyState !== this.#socket.OPEN) return
        if (!toAppError(error as never)) {
          this.#request.log.error({ err: error, instanceId: this.#instanceId }, 'a turn failed')
        }
        this.#sendError(error)
      })
    }
    this.#isRunning = false
    this.#closeIfEnded()
  }

  async #run({ data, isBinary }: Frame): Promise<void> {
    const { db, turns, store, vault, watches, readFrame, countTurn, inFlight } = this.#deps
    const { caller, log } = this.#request
    const { organizationId, sessions } = caller
    const turn = turns.runner.begin()
    this.#turn = turn
    openStreams.inc()
    let release: (() => void) | undefined
    try {
      release = inFlight?.take('turns', organizationId)
      await countTurn?.(this.#request, replyWithoutHeaders)
      turn.signal.throwIfAborted()
      if (isBinary) throw new AppError('invalid_json', errorTexts.textFrames)
      const body = await readFrame(data)
      const sessionKey = requestedSessionKey(body, this.#sessionId, sessions)
      const session = { organizationId, instanceId: this.#instanceId, sessionKey }
      const unstoredId = this.#unstoredId
      // In the format a continuation that fails makes the connection forget it.
      if (body.previous_response_id === unstoredId) this.#unstoredId = null
      const run = runResponse({ db, turns, store, vault, watches }, turn, {
        caller,
        session,
        unstoredId,
        body,
        isStreamed: true,
        log,
      })
      for await (const batch of run) {
        this.#refusedInARow = 0
        const end = body.store === false && batch.find(({ type }) => answerEnds.has(type))
        if (end) this.#unstoredId = JSON.parse(end.json()).response.id
        await this.#send(batch, turn)
      }
    } finally {
      release?.()
      openStreams.dec()
      turns.runner.finish(turn)
      this.#turn = null
    }
  }

  /** Sends each event as a frame. Returns a promise when the client is slow, which resolves when it has read enough. */
  #send(events: ResponseEvent[], { signal }: Turn): Promise<void> | undefined {
    const socket = this.#socket
    const tcp = this.#request.raw.socket
    tcp.cork()
    for (const { json } of events) socket.send(json())
    tcp.uncork()
    const needsNoWait = signal.aborted || socket.readyState !== socket.OPEN
    if (needsNoWait || socket.bufferedAmount <= maxUnsentBytes) return undefined
    const { promise, resolve } = Promise.withResolvers<void>()
    const goOn = () => {
      tcp.off('drain', goOn)
      socket.off('close', goOn)
      signal.removeEventListener('abort', goOn)
      resolve()
    }
    tcp.on('drain', goOn)
    socket.on('close', goOn)
    signal.addEventListener('abort', goOn)
    return promise
  }

  #errorFrame(error: unknown): string {
    return errorFrame(error, { requestId: this.#request.id, publicUrl: this.#deps.publicUrl() })
  }

  #sendError(error: unknown): void {
    this.#socket.send(this.#errorFrame(error))
    this.#refusedInARow += 1
    if (this.#refusedInARow < maxRefusedInARow) return
    this.end(closeCodes.policyViolation, new AppError('rate_limited', errorTexts.tooManyRefused))
  }
}
