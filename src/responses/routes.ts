import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyBaseLogger, FastifyReply, FastifyRequest } from 'fastify'
import { LRUCache } from 'lru-cache'
import type { Dispatcher } from 'undici'
import type { ModelProvider } from '../database/schema.ts'
import { type Endpoint, probeHealth } from '../openclaw/gateway.ts'
import { toGatewayModel } from '../openclaw/model.ts'
import { sessionKey } from '../openclaw/session-key.ts'
import { type FindCaller, onceRefused } from '../platform/auth.ts'
import { AppError } from '../platform/errors.ts'
import { openStreams, turnAddedDuration } from '../platform/metrics.ts'
import { failures } from '../platform/openapi.ts'
import { collect } from './byte-buffer.ts'
import { gatewayError, providerRefusal } from './gateway-errors.ts'
import { openGatewayPool, unreachable } from './gateway-pool.ts'
import { relayEvents } from './relay.ts'
import { answers, Message } from './schemas.ts'
import { clientLeft, defaultTimes, Turn, type TurnTimes } from './turn.ts'
import { turnTexts } from './turn-texts.ts'

const maxRequestBytes = 20 * 1024 * 1024
const maxAnswerBytes = 64 * 1024 * 1024
const maxErrorBytes = 64 * 1024

export interface RunningGateway {
  endpoint: Endpoint
  token: string
  provider: ModelProvider
}

/**
 * Finds the gateway of a running instance of an organization. Throws AppError `not_found`, or `conflict` when the
 * instance is not running.
 */
type GatewayOf = (organizationId: string, instanceId: string) => Promise<RunningGateway>

export interface ResponseDeps {
  gatewayOf: GatewayOf
  findCaller: FindCaller
  times?: TurnTimes
  /** How long, in ms, a gateway keeps a key aside after the provider refused it. */
  keyCooldownMs?: number
}

// A malformed id is an unknown one: 404.
const ById = Type.Object({ instance_id: Type.String({ description: 'The id of the instance.' }) })
const BySession = Type.Object({
  ...ById.properties,
  session_id: Type.String({
    description:
      'Any name you pick, up to 200 bytes: a user id, a ticket number. The session begins with its first message.',
  }),
})

/** The gateway takes no null for `stream`, and a `user` would select a session: only the path does that. */
function gatewayBody({ stream, user: _user, ...rest }: Message & { user?: unknown }): string {
  return JSON.stringify({
    ...rest,
    ...(stream === null ? {} : { stream }),
    model: 'openclaw',
  })
}

/** All that goes upstream: nothing of the client's own headers. */
function gatewayHeaders({ token, provider }: RunningGateway, sessionId: string, { model, stream }: Message) {
  const gatewayModel = toGatewayModel(provider, model)
  return {
    authorization: `Bearer ${token}`,
    accept: stream ? 'text/event-stream' : 'application/json',
    'x-openclaw-session-key': sessionKey(sessionId),
    ...(gatewayModel === null ? {} : { 'x-openclaw-model': gatewayModel }),
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
}

const broken = (text: string) => new AppError('gateway_unreachable', text, { doNotRetry: true })

/** How the gateway begins the answer of a turn that went well: enough to name another model without reading the rest. */
const completedHead = /^(\{"id":"[\w-]+","object":"response","created_at":\d+,"status":"completed","model":)"openclaw"/
const headBytes = 256

/** The answer with the caller's model in it, if it begins as answers do; anything else is worth a closer look. */
function withModel(bytes: Buffer, model: string): Buffer | null {
  const head = completedHead.exec(bytes.toString('latin1', 0, headBytes))
  if (!head) return null
  return Buffer.concat([Buffer.from(head[1] + JSON.stringify(model)), bytes.subarray(head[0].length)])
}

function readAnswer(bytes: Buffer): Record<string, unknown> {
  const response = parseJson(bytes)
  if (typeof response !== 'object' || response === null) throw broken(turnTexts.unreadable)
  return response as Record<string, unknown>
}

function countStream({ raw }: FastifyReply): void {
  if (raw.closed) return
  openStreams.inc()
  raw.once('close', () => openStreams.dec())
}

/** Talking to a running instance's agent, plain or streamed. The path alone decides the session. */
export const responseRoutes: FastifyPluginAsyncTypebox<ResponseDeps> = async (app, deps) => {
  const { gatewayOf, findCaller, times = defaultTimes, keyCooldownMs = 70_000 } = deps
  const gateways = openGatewayPool()
  const turns = new Set<Turn>()
  /** What the provider refused lately, by instance. */
  const refusals = new LRUCache<string, string>({ max: 10_000, ttl: keyCooldownMs })

  // An open turn would hold the server's close for as long as its agent thinks.
  app.addHook('preClose', async () => {
    const reason = new AppError('unavailable', turnTexts.shuttingDown, { doNotRetry: true })
    for (const turn of turns) turn.end(reason)
  })
  app.addHook('onClose', () => gateways.close())

  function beginTurn(reply: FastifyReply): Turn {
    const turn = new Turn(times)
    turns.add(turn)
    onceRefused(reply, findCaller, (reason) => turn.end(reason))
    // Not request.signal: that one fires as soon as the body is read.
    reply.raw.on('close', () => {
      turns.delete(turn)
      if (reply.raw.writableFinished) turn.finish()
      else turn.end(clientLeft)
    })
    return turn
  }

  /** What a failure between here and the gateway means: the reason why we ended the turn, if we did. */
  const explain = (turn: Turn, cause: unknown): Error => {
    if (turn.signal.aborted) return turn.signal.reason
    return cause instanceof AppError ? cause : unreachable(cause)
  }

  async function refusal(
    answer: Dispatcher.ResponseData,
    { provider }: RunningGateway,
    id: string,
    log: FastifyBaseLogger,
  ): Promise<AppError> {
    const { bytes } = await collect(answer.body, maxErrorBytes)
    const retryAfter = answer.headers['retry-after']?.toString()
    const failure = { status: answer.statusCode, body: parseJson(bytes), retryAfter }
    const { error, refused } = gatewayError(provider, failure, refusals.get(id))
    if (refused === 'provider') refusals.set(id, error.message)
    if (refused === 'chowder') {
      log.error({ instanceId: id, status: answer.statusCode }, "the gateway refused Chowder's own token")
    }
    return error
  }

  /** Remembers what the provider refused, or that it does no longer. */
  function noteOutcome({ status, error }: Record<string, unknown>, provider: ModelProvider, id: string): void {
    if (status !== 'failed') refusals.delete(id)
    const refused = providerRefusal(provider, error)
    if (refused) refusals.set(id, refused)
  }

  async function passTurn(request: FastifyRequest, reply: FastifyReply, turn: Turn, id: string, sessionId: string) {
    const body = request.body as Message
    const gateway = await gatewayOf(request.caller.organizationId, id)
    const headers = gatewayHeaders(gateway, sessionId, body)
    turn.signal.throwIfAborted()
    turn.watch((options) => probeHealth(gateway.endpoint, '/healthz', options))
    const failed = (cause: unknown): never => {
      throw explain(turn, cause)
    }
    const askedAt = reply.elapsedTime
    const answer = await gateways.post(gateway.endpoint, headers, gatewayBody(body), turn.signal).catch(failed)
    turn.heard()
    if (answer.statusCode !== 200) throw await refusal(answer, gateway, id, request.log).catch(failed)

    let answeredAt = reply.elapsedTime
    const noteAdded = () => turnAddedDuration.observe((askedAt + reply.elapsedTime - answeredAt) / 1000)
    reply.header('cache-control', 'no-store')
    const contentType = String(answer.headers['content-type'])
    if (contentType.startsWith('text/event-stream')) {
      const events = relayEvents(answer.body, {
        model: body.model,
        onChunk: () => turn.heard(),
        onOutcome: (response) => noteOutcome(response, gateway.provider, id),
        explain: (cause) => explain(turn, cause),
        onBroken: (err) => request.log.warn({ err, instanceId: id }, 'stream ended with an error event'),
      })
      noteAdded()
      countStream(reply)
      return reply.type('text/event-stream').send(Readable.from(events, { objectMode: false }))
    }
    const { bytes, isWhole } = await collect(answer.body, maxAnswerBytes, () => turn.heard()).catch(failed)
    answeredAt = reply.elapsedTime
    if (!isWhole) throw broken(turnTexts.tooLarge)
    reply.type('application/json; charset=utf-8')
    const completed = withModel(bytes, body.model)
    if (completed) {
      refusals.delete(id)
      noteAdded()
      return reply.send(completed)
    }
    const response = readAnswer(bytes)
    noteOutcome(response, gateway.provider, id)
    noteAdded()
    return reply.send(JSON.stringify({ ...response, model: body.model }))
  }

  async function answerTurn(request: FastifyRequest, reply: FastifyReply, id: string, sessionId: string) {
    const turn = beginTurn(reply)
    try {
      return await passTurn(request, reply, turn, id, sessionId)
    } catch (error) {
      if (turn.signal.reason === clientLeft) return reply.hijack() // nobody to answer
      throw error
    }
  }

  const config = { access: 'interact', openaiErrors: true, endsRefused: true } as const
  const schema = {
    tags: ['responses'],
    body: Message,
    response: { ...answers, ...failures(400, 404, 409, 413, 502, 504) },
  }
  const outcome =
    'Answers when the agent is done, after up to 15 minutes, or streams. 409 unless the instance is `running`; 502 and 504 are the gateway’s and the provider’s failures. `x-should-retry: false` says that a turn may have begun.'

  app.post(
    '/v1/instances/:instance_id/responses',
    {
      config: { ...config, event: null },
      bodyLimit: maxRequestBytes,
      schema: {
        ...schema,
        operationId: 'createResponse',
        summary: 'Say something to an agent',
        description: `Speaks to the session \`main\`, which remembers what was said. ${outcome}`,
        params: ById,
      },
    },
    (request, reply) => answerTurn(request, reply, request.params.instance_id, 'main'),
  )

  app.post(
    '/v1/instances/:instance_id/session/:session_id/responses',
    {
      config: { ...config, event: null },
      bodyLimit: maxRequestBytes,
      schema: {
        ...schema,
        operationId: 'createSessionResponse',
        summary: 'Say something to an agent in a session',
        description: `Each session has its own history and context; skills and files are shared by all. ${outcome}`,
        params: BySession,
      },
    },
    (request, reply) => answerTurn(request, reply, request.params.instance_id, request.params.session_id),
  )
}
