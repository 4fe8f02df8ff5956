import type { IncomingMessage } from 'node:http'
import websocket from '@fastify/websocket'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { WebSocket } from 'ws'
import { type FindCaller, onceRefused } from '#http/auth.ts'
import { inOneLine, openaiType, toAppError } from '#http/errors.ts'
import { jsonParser } from '#http/json-body.ts'
import type { RunningGateway } from '#instances/find.ts'
import { isObject } from '#openclaw/json.ts'
import { sessionKey } from '#openclaw/session-key.ts'
import { AppError, statusOf } from '#platform/errors.ts'
import { openStreams } from '#platform/metrics.ts'
import { errorTexts } from './format/error-texts.ts'
import { CreateResponse } from './format/request-schema.ts'
import type { ResponseEvent } from './format/response-writer.ts'
import { runResponse } from './run-response.ts'
import type { ResponseStore } from './store/response-store.ts'
import { clientLeft, type Turn } from './turns/turn.ts'
import type { TurnRunner } from './turns/turn-runner.ts'
import { taggedBodies } from './validation.ts'

const paths = /^\/v1\/instances\/[^/?]+\/(?:session\/[^/?]+\/)?responses(?:\?|$)/

/** Whether a request asks to become a WebSocket where there is one. All others that ask for an upgrade get none. */
export const asksForWebSocket = ({ method, url = '', headers }: IncomingMessage): boolean =>
  method === 'GET' && headers.upgrade?.toLowerCase() === 'websocket' && paths.test(url)

const maxMessageBytes = 20 * 1024 * 1024
/** Turns that may wait on a connection while one runs; all together may be as large as one. */
const maxWaiting = 4
/** What may be unsent before the agent has to wait for the reader. */
const maxUnsentBytes = 64 * 1024
/** What may be unsent before nothing more is taken from who does not read what he is told. */
const maxUnreadBytes = 1024 * 1024
const pingEveryMs = 30_000
const maxConnectionMs = 60 * 60_000

/** WebSocket close codes. */
const policyViolation = 1008
const serviceRestart = 1012

interface Deps {
  turns: TurnRunner
  store: ResponseStore
  gatewayOf(organizationId: string, instanceId: string): Promise<RunningGateway>
  findCaller: FindCaller
  /** How long, in ms, a connection that is ended has for its close. */
  graceMs: number
  countTurn: ((request: FastifyRequest, reply: FastifyReply) => Promise<void>) | undefined
}

/** The answer to a plain GET of such a path. */
export function refuseHttp(): never {
  throw new AppError('invalid', errorTexts.needsWebSocket)
}

const refuse = (param: string, message: string) => new AppError('invalid', message, { param })

/** An error as the format's WebSocket mode has it. */
function errorFrame(thrown: unknown): string {
  const known = toAppError(thrown as Error & { code: string; name: string; statusCode?: number })
  const status = known ? statusOf[known.kind] : 500
  const { message = 'Internal error.', param = null } = known ?? {}
  const code = known ? (known.code ?? known.kind) : 'internal'
  return JSON.stringify({ type: 'error', status, error: { type: openaiType(status), code, message, param } })
}

/**
 * The Responses format's WebSocket mode: each text frame `response.create` is a turn, each event of it a frame. Turns of a
 * connection run one after the other; what fails before a turn begins is an `error` frame, and the connection goes on.
 * Answers what serves a connection. Whoever closes the server ends the turns before.
 */
export async function useWebSockets(app: FastifyInstance, deps: Deps) {
  const { turns, store, gatewayOf, findCaller, graceMs, countTurn } = deps
  const parse = jsonParser(app)
  const validate = taggedBodies({ schema: CreateResponse, method: 'GET', url: '', httpPart: 'body' }) as {
    (body: unknown): boolean
    errors: Parameters<typeof inOneLine>[0] | null
  }
  const connections = new Set<{ end(code: number, reason: AppError): void }>()
  const shuttingDown = new AppError('unavailable', errorTexts.shuttingDown)
  let isClosing = false

  await app.register(websocket, {
    options: { maxPayload: maxMessageBytes, perMessageDeflate: false },
    errorHandler: (_error, socket) => socket.terminate(),
    preClose(done) {
      isClosing = true
      for (const connection of connections) connection.end(serviceRestart, shuttingDown)
      done()
    },
  })

  // Nobody parses what comes behind an upgrade that was refused.
  app.addHook('onResponse', async ({ raw }) => {
    if (asksForWebSocket(raw)) raw.socket.destroySoon()
  })

  function readFrame(text: string): CreateResponse {
    const frame = parse(text)
    if (!isObject(frame) || frame.type !== 'response.create') throw refuse('type', errorTexts.onlyCreate)
    const { type: _type, stream: _stream, stream_options: _options, stream_id, generate, ...body } = frame
    if (stream_id != null) throw refuse('stream_id', errorTexts.oneAfterAnother)
    if (generate != null && generate !== true) throw refuse('generate', errorTexts.noWarmUp)
    if (!validate(body)) throw new AppError('unprocessable', inOneLine(validate.errors ?? []))
    return body as CreateResponse
  }

  return function converse(socket: WebSocket, request: FastifyRequest, sessionId: string): void {
    const { caller, params, raw } = request
    const { instance_id: instanceId } = params as { instance_id: string }
    const waiting: { data: Buffer; isBinary: boolean }[] = []
    let waitingBytes = 0
    let turn: Turn | null = null
    let isRunning = false
    let isAlive = true
    /** Why no further turn is begun; told, with the close, once the one that runs has ended. */
    let ending: { code: number; reason: AppError } | null = null
    let cutting: NodeJS.Timeout | undefined

    const finish = () => {
      if (!ending || isRunning || socket.readyState === socket.CLOSED) return
      cutting ??= setTimeout(() => socket.terminate(), graceMs)
      if (socket.readyState !== socket.OPEN) return
      socket.send(errorFrame(ending.reason))
      socket.close(ending.code)
    }
    const connection = {
      end(code: number, reason: AppError) {
        ending ??= { code, reason }
        waiting.length = 0
        finish()
      },
    }
    connections.add(connection)
    onceRefused(caller, socket, findCaller, (reason) => {
      turn?.end(reason)
      connection.end(policyViolation, reason)
    })
    const tooOld = new AppError('invalid', errorTexts.connectionTooOld, { code: 'websocket_connection_limit_reached' })
    const lasting = setTimeout(() => connection.end(policyViolation, tooOld), maxConnectionMs)
    // Whoever has yet to read what was sent is not asked.
    const pinging = setInterval(() => {
      if (!isAlive && socket.bufferedAmount === 0) return socket.terminate()
      isAlive = false
      socket.ping()
    }, pingEveryMs)
    socket.on('pong', () => {
      isAlive = true
    })
    socket.on('close', () => {
      clearTimeout(lasting)
      clearTimeout(cutting)
      clearInterval(pinging)
      connections.delete(connection)
      waiting.length = 0
      turn?.end(clientLeft)
    })

    const tell = (error: unknown) => {
      socket.send(errorFrame(error))
      if (socket.bufferedAmount <= maxUnreadBytes || socket.isPaused) return
      socket.pause()
      raw.socket.once('drain', () => socket.resume())
    }

    /** Each event in a frame; resolves when the reader is ready for more. */
    const send = (events: ResponseEvent[], { signal }: Turn): Promise<void> | void => {
      raw.socket.cork()
      for (const { json } of events) socket.send(json())
      raw.socket.uncork()
      const isGone = signal.aborted || socket.readyState !== socket.OPEN
      if (isGone || socket.bufferedAmount <= maxUnsentBytes) return
      return new Promise((resolve) => {
        const goOn = () => {
          raw.socket.off('drain', goOn)
          socket.off('close', goOn)
          signal.removeEventListener('abort', goOn)
          resolve()
        }
        raw.socket.on('drain', goOn)
        socket.on('close', goOn)
        signal.addEventListener('abort', goOn)
      })
    }

    async function run({ data, isBinary }: (typeof waiting)[number]): Promise<void> {
      const running = turns.begin()
      turn = running
      openStreams.inc()
      try {
        await countTurn?.(request, reply)
        running.signal.throwIfAborted()
        if (isBinary) throw new AppError('invalid', errorTexts.textFrames)
        const body = readFrame(data.toString('utf8'))
        const response = await runResponse(turns, store, running, {
          organizationId: caller.organizationId,
          gateway: await gatewayOf(caller.organizationId, instanceId),
          instanceId,
          sessionKey: sessionKey(sessionId),
          body,
          isStreamed: true,
          log: request.log,
        })
        for await (const events of response.events()) await send(events, running)
      } finally {
        openStreams.dec()
        turns.finish(running)
        turn = null
      }
    }
    /** For the counting of requests, which shows in the headers of an answer what is left: here there are none. */
    const reply = { header: () => reply } as unknown as FastifyReply

    async function runAll(): Promise<void> {
      if (isRunning) return
      isRunning = true
      for (let next = waiting.shift(); next && !ending; next = waiting.shift()) {
        waitingBytes -= next.data.length
        await run(next).catch((error: unknown) => {
          if (socket.readyState !== socket.OPEN) return
          if (!toAppError(error as never)) request.log.error({ err: error, instanceId }, 'a turn failed')
          tell(error)
        })
      }
      isRunning = false
      finish()
    }

    socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (ending || socket.readyState !== socket.OPEN) return
      if (waiting.length >= maxWaiting || waitingBytes + data.length > maxMessageBytes) {
        return tell(new AppError('rate_limited', errorTexts.tooManyWaiting))
      }
      waiting.push({ data, isBinary })
      waitingBytes += data.length
      void runAll()
    })
    if (isClosing) connection.end(serviceRestart, shuttingDown)
  }
}
