import { Readable } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Db } from '#database/client.ts'
import { type FindCaller, onceRefused } from '#http/auth.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { FindSummary, RunningGateway } from '#instances/find.ts'
import { getInstance, ownModel } from '#instances/row.ts'
import { sessionKey } from '#openclaw/session-key.ts'
import { openStreams, turnAddedDuration } from '#platform/metrics.ts'
import type { Vault } from '#platform/secrets.ts'
import { CreateChatCompletion, chatCompletionAnswers } from './chat/completion-schema.ts'
import { createEphemeralSession, endEphemeralSession } from './chat/ephemeral-sessions.ts'
import { runChatCompletion } from './chat/run-chat-completion.ts'
import { CreateResponse } from './format/request-schema.ts'
import type { ResponseEvent } from './format/response-writer.ts'
import { runResponse } from './run-response.ts'
import { answers, jsonType, Models } from './schemas.ts'
import { createResponseStore } from './store/response-store.ts'
import { storedResponseRoutes } from './stored-routes.ts'
import { clientLeft, defaultTurnTimeouts, type Turn, type TurnTimeouts } from './turns/turn.ts'
import type { AgentAnswer } from './turns/turn-runner.ts'
import { createTurnRunner } from './turns/turn-runner.ts'
import { taggedBodies } from './validation.ts'
import { refuseHttp, useWebSockets } from './web-socket.ts'

const maxRequestBytes = 20 * 1024 * 1024

/**
 * Finds the gateway of a running instance of an organization. Throws AppError `not_found`, or `conflict` when the
 * instance is not running.
 */
type GatewayOf = (organizationId: string, instanceId: string) => Promise<RunningGateway>

export interface ResponseDeps {
  db: Db
  vault: Vault
  gatewayOf: GatewayOf
  findSummary: FindSummary
  findCaller: FindCaller
  turnTimeouts?: TurnTimeouts
  /** How long, in ms, a gateway keeps a key aside after the provider refused it. */
  keyCooldownMs?: number
  /** Counts a turn on an open connection as a request. Throws AppError rate_limited for one too many. */
  countTurn?: (request: FastifyRequest, reply: FastifyReply) => Promise<void>
}

const BySession = Type.Object({
  ...InstanceParams.properties,
  session_id: Type.String({
    description:
      'Any name you pick, up to 200 bytes: a user id, a ticket number. The session begins with its first message.',
  }),
})
function countStream({ raw }: FastifyReply): void {
  if (raw.closed) return
  openStreams.inc()
  raw.once('close', () => openStreams.dec())
}

/** Each event in one piece, and all that came at once together. */
async function* serverSent(stream: AsyncIterable<ResponseEvent[]>): AsyncGenerator<string> {
  for await (const events of stream)
    yield events.map(({ type, json }) => `event: ${type}\ndata: ${json()}\n\n`).join('')
  yield 'data: [DONE]\n\n'
}

async function* chunked(stream: AsyncIterable<string[]>): AsyncGenerator<string> {
  for await (const chunks of stream) yield chunks.map((chunk) => `data: ${chunk}\n\n`).join('')
}

/** What Chowder added to a turn so far: all that was not waiting for the gateway. */
function noteAdded({ elapsedTime }: FastifyReply, { askedAt, answeredAt }: AgentAnswer): void {
  turnAddedDuration.observe((elapsedTime - (answeredAt - askedAt)) / 1000)
}

/** Talking to a running instance's agent, plain or streamed, and reading again what it answered. */
export const responseRoutes: FastifyPluginAsyncTypebox<ResponseDeps> = async (app, deps) => {
  const { db, gatewayOf, findSummary, findCaller } = deps
  const turnTimeouts = deps.turnTimeouts ?? defaultTurnTimeouts
  const { graceMs } = turnTimeouts
  const turns = createTurnRunner(turnTimeouts, deps.keyCooldownMs ?? 70_000)
  const store = createResponseStore(db, deps.vault, app.log)

  // An open turn would hold the server's close for as long as its agent thinks.
  app.addHook('preClose', async () => turns.endAll())
  const converse = await useWebSockets(app, { turns, store, gatewayOf, findCaller, graceMs, countTurn: deps.countTurn })
  app.addHook('onClose', async () => {
    await turns.close()
    await store.close()
  })

  function beginTurn(reply: FastifyReply): Turn {
    const turn = turns.begin()
    if (!reply.raw.closed) onceRefused(reply.request.caller, reply.raw, findCaller, (reason) => turn.end(reason))
    let cutting: NodeJS.Timeout | undefined
    // Who does not read would never learn of the end, and hold open what waits for him.
    turn.signal.addEventListener('abort', () => {
      cutting = setTimeout(() => reply.raw.destroy(), graceMs)
    })
    // Not request.signal: that one fires as soon as the body is read.
    reply.raw.on('close', () => {
      if (!reply.raw.writableFinished) turn.end(clientLeft)
      clearTimeout(cutting)
      turns.finish(turn)
    })
    return turn
  }

  /** Runs a turn, and answers it as a stream of bytes or in one piece. */
  async function answer(
    reply: FastifyReply,
    run: (turn: Turn) => Promise<{ answer: AgentAnswer; stream?: AsyncIterable<string>; json?: () => Promise<string> }>,
  ) {
    const turn = beginTurn(reply)
    try {
      const { answer, stream, json } = await run(turn)
      reply.header('cache-control', 'no-store')
      if (stream) {
        noteAdded(reply, answer)
        countStream(reply)
        return reply.type('text/event-stream').send(Readable.from(stream, { objectMode: false }))
      }
      const text = await json?.()
      noteAdded(reply, answer)
      return reply.type(jsonType).send(text)
    } catch (error) {
      if (turn.signal.reason === clientLeft) return reply.hijack() // nobody to answer
      throw error
    }
  }

  const answerTurn = (request: FastifyRequest, reply: FastifyReply, instanceId: string, sessionId: string) =>
    answer(reply, async (turn) => {
      const { organizationId } = request.caller
      const body = request.body as CreateResponse
      const isStreamed = body.stream === true
      const { answer, events, json } = await runResponse(turns, store, turn, {
        organizationId,
        gateway: await gatewayOf(organizationId, instanceId),
        instanceId,
        sessionKey: sessionKey(sessionId),
        body,
        isStreamed,
        log: request.log,
      })
      return isStreamed ? { answer, stream: serverSent(events()) } : { answer, json }
    })

  const answerChat = (request: FastifyRequest, reply: FastifyReply, instanceId: string) =>
    answer(reply, async (turn) => {
      const { organizationId } = request.caller
      const body = request.body as CreateChatCompletion
      const { answer, chunks, json } = await runChatCompletion(turns, turn, {
        gateway: await gatewayOf(organizationId, instanceId),
        instanceId,
        body,
        log: request.log,
        async makeSession() {
          const key = await createEphemeralSession(db, { organizationId, instanceId })
          const end = () =>
            void endEphemeralSession(db, key).catch((err) => request.log.warn({ err }, 'a passing session ends later'))
          if (reply.raw.closed) end()
          else reply.raw.on('close', end)
          return key
        },
      })
      return body.stream === true ? { answer, stream: chunked(chunks()) } : { answer, json }
    })

  const config = { access: 'interact', openaiErrors: true, endsRefused: true, event: null } as const
  const schema = {
    tags: ['responses'],
    body: CreateResponse,
    response: { ...answers, ...failures(400, 404, 409, 413, 502, 504) },
  }
  const outcome =
    'Answers when the agent is done, after up to 15 minutes, or streams. 409 unless the instance is `running`; 502 and 504 are the gateway’s and the provider’s failures. `x-should-retry: false` says that a turn may have begun. Turns of one session run one after the other.'

  app.post(
    '/v1/instances/:instance_id/responses',
    {
      config,
      bodyLimit: maxRequestBytes,
      validatorCompiler: taggedBodies,
      schema: {
        ...schema,
        operationId: 'createResponse',
        summary: 'Say something to an agent',
        description: `Speaks to the session \`main\`, which remembers what was said. ${outcome}`,
        params: InstanceParams,
      },
    },
    (request, reply) => answerTurn(request, reply, request.params.instance_id, 'main'),
  )

  app.post(
    '/v1/instances/:instance_id/session/:session_id/responses',
    {
      config,
      bodyLimit: maxRequestBytes,
      validatorCompiler: taggedBodies,
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

  const connected = {
    method: 'GET',
    config,
    handler: refuseHttp,
    preHandler: async ({ caller, params }: FastifyRequest) => {
      const { instance_id, session_id = 'main' } = params as { instance_id: string; session_id?: string }
      await findSummary(caller.organizationId, instance_id)
      sessionKey(session_id)
    },
  } as const
  const connecting = {
    tags: ['responses'],
    description:
      'Speaks the WebSocket mode of the Responses format: each text frame `{"type": "response.create", …}` is a turn, and each of its events a frame. Ask for `Upgrade: websocket`; a plain GET is a 400.',
    response: { 101: Type.Null({ description: 'The connection is a WebSocket now.' }), ...failures(400, 404) },
  }
  app.route({
    ...connected,
    url: '/v1/instances/:instance_id/responses',
    schema: {
      ...connecting,
      operationId: 'connectResponses',
      summary: 'Talk to an agent over a WebSocket',
      params: InstanceParams,
    },
    wsHandler: (socket, request) => converse(socket, request, 'main'),
  })
  app.route({
    ...connected,
    url: '/v1/instances/:instance_id/session/:session_id/responses',
    schema: {
      ...connecting,
      operationId: 'connectSessionResponses',
      summary: 'Talk to an agent in a session over a WebSocket',
      params: BySession,
    },
    wsHandler: (socket, request) => converse(socket, request, (request.params as { session_id: string }).session_id),
  })

  app.post(
    '/v1/instances/:instance_id/chat/completions',
    {
      config,
      bodyLimit: maxRequestBytes,
      schema: {
        ...schema,
        body: CreateChatCompletion,
        response: { ...chatCompletionAnswers, ...failures(400, 404, 409, 413, 502, 504) },
        operationId: 'createChatCompletion',
        summary: 'Say something to an agent in the Chat Completions format',
        description: `For clients that speak no other format, and send the whole conversation each time: the call runs in a session of its own that is deleted after it. ${outcome}`,
        params: InstanceParams,
      },
    },
    (request, reply) => answerChat(request, reply, request.params.instance_id),
  )

  app.get(
    '/v1/instances/:instance_id/models',
    {
      config: { access: 'interact', openaiErrors: true },
      schema: {
        operationId: 'listModels',
        summary: 'List the models of an agent',
        description:
          '`openclaw` is the agent with the model it is set to. Any model of its provider can be named instead, also one that is not listed.',
        tags: ['responses'],
        params: InstanceParams,
        response: { 200: Models, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      const created = Math.floor(instance.createdAt.getTime() / 1000)
      const model = ownModel(deps.vault, instance)
      return {
        object: 'list' as const,
        data: [
          { id: 'openclaw', object: 'model' as const, created, owned_by: 'openclaw' },
          { id: model, object: 'model' as const, created, owned_by: instance.modelProvider },
        ],
      }
    },
  )

  await app.register(storedResponseRoutes, { store, findSummary })
}
