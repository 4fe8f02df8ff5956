import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { createTurnBudgets } from '#budgets/check.ts'
import type { Db } from '#database/client.ts'
import type { FindCaller } from '#http/auth.ts'
import type { InFlight } from '#http/in-flight.ts'
import { InstanceParams } from '#http/instance-params.ts'
import type { FindGateway, FindSummary } from '#instances/find.ts'
import type { DeclareModel } from '#instances/gateway/declare-model.ts'
import { noteKeyRefusal } from '#instances/provider-key-refusal.ts'
import { sessionKey } from '#openclaw/session-key.ts'
import type { Vault } from '#platform/secrets.ts'
import { chatRoutes } from './chat-routes.ts'
import { createNoteEndUser } from './end-users.ts'
import { CreateResponse } from './format/request-schema.ts'
import { createTurnLines } from './lines/turn-lines.ts'
import { modelRoutes } from './model-routes.ts'
import { runResponse } from './run-response.ts'
import { BySession, maxRequestBytes, responseAnswers, turnBehaviour, turnFailures, turnRouteConfig } from './schemas.ts'
import { createResponseStore } from './store/response-store.ts'
import { storedRoutes } from './stored-routes.ts'
import { defaultTurnTimeouts, type TurnTimeouts } from './turns/turn.ts'
import { replyWithTurn, serverSentEvents } from './turns/turn-reply.ts'
import { createTurnRunner } from './turns/turn-runner.ts'
import { taggedBodies } from './validation.ts'
import { webSocketRoutes } from './web-socket.ts'

export interface ResponseDeps {
  db: Db
  /** The id of this process in the table `processes`. */
  processId: string
  vault: Vault
  /**
   * Finds the gateway of a running instance. Throws AppError `not_found`, or `conflict` when the instance is not
   * running.
   */
  findGateway: FindGateway
  declareModel: DeclareModel
  findSummary: FindSummary
  findCaller: FindCaller
  /** The address that clients reach the API at. */
  publicUrl(): string
  turnTimeouts?: TurnTimeouts
  closing: TurnDrain
  /** Counts a turn on an open WebSocket as a request. Throws AppError rate_limited when there are too many. */
  countTurn?: (request: FastifyRequest, reply: FastifyReply) => Promise<void>
  /** Bounds the turns on open WebSockets. */
  inFlight?: InFlight
}

/** How turns end when the server closes. */
interface TurnDrain {
  /** How long turns that run may take to end by themselves, in ms. Called once, when the server closes. */
  turnsMs(): number
  /** Called once no turn runs. */
  onTurnsEnded(): void
}

/** The routes to talk to the agent of a running instance, and to read its responses later. */
export const responseRoutes: FastifyPluginAsyncTypebox<ResponseDeps> = async (app, deps) => {
  const { db, vault, findGateway, findSummary, findCaller, publicUrl, countTurn, inFlight, closing } = deps
  const { turnTimeouts = defaultTurnTimeouts } = deps
  const { graceMs } = turnTimeouts
  const turns = createTurnRunner(turnTimeouts, deps.declareModel, ({ organizationId, provider }) =>
    noteKeyRefusal(db, organizationId, provider),
  )
  const store = createResponseStore(db, vault, deps.processId, app.log)
  const lines = createTurnLines(db, deps.processId)
  const noteEndUser = createNoteEndUser(db, app.log)
  const budgets = createTurnBudgets(db)

  // Not awaited: the server stops listening after this hook, and then waits for its open requests.
  app.addHook('preClose', async () => void turns.drain(closing.turnsMs()).then(closing.onTurnsEnded))

  const answer = (request: FastifyRequest, reply: FastifyReply, instanceId: string, sessionId: string) =>
    replyWithTurn(reply, { turns, findCaller, graceMs }, async (turn) => {
      const { organizationId, keyId } = request.caller
      const body = request.body as CreateResponse
      const isStreamed = body.stream === true
      const session = { organizationId, instanceId, sessionKey: sessionKey(sessionId) }
      const gateway = await findGateway(organizationId, instanceId)
      await budgets.require({ organizationId, keyId, instanceId })
      await noteEndUser(request.caller, session)
      const { answer, events, json } = await runResponse({ turns, store, lines }, turn, {
        gateway,
        session,
        visible: request.caller,
        body,
        isStreamed,
        log: request.log,
        begin: () => budgets.begin({ ...session, keyId }),
      })
      if (!isStreamed) return { answer, json }
      const format = (event: { type: string; json(): string }) => `event: ${event.type}\ndata: ${event.json()}\n\n`
      return { answer, stream: serverSentEvents(events(), format, 'data: [DONE]\n\n') }
    })

  const createRoute = { config: turnRouteConfig, bodyLimit: maxRequestBytes, validatorCompiler: taggedBodies }
  const createSchema = {
    tags: ['responses'],
    body: CreateResponse,
    response: { ...responseAnswers, ...turnFailures },
  }

  app.post(
    '/v1/instances/:instance_id/responses',
    {
      ...createRoute,
      config: { ...turnRouteConfig, session: 'main' },
      schema: {
        ...createSchema,
        operationId: 'createResponse',
        summary: 'Send a message to an agent',
        description: `Sends a message in the session \`main\`, which remembers the conversation. ${turnBehaviour}`,
        params: InstanceParams,
      },
    },
    (request, reply) => answer(request, reply, request.params.instance_id, 'main'),
  )

  app.post(
    '/v1/instances/:instance_id/session/:session_id/responses',
    {
      ...createRoute,
      schema: {
        ...createSchema,
        operationId: 'createSessionResponse',
        summary: 'Send a message to an agent in a session',
        description: `A session has its own history and context. All sessions share skills and files. ${turnBehaviour}`,
        params: BySession,
      },
    },
    (request, reply) => answer(request, reply, request.params.instance_id, request.params.session_id),
  )

  const turnDeps = { turns, noteEndUser, budgets, findGateway, findCaller, publicUrl, graceMs }
  await app.register(webSocketRoutes, { ...turnDeps, store, lines, findSummary, countTurn, inFlight })
  await app.register(chatRoutes, { ...turnDeps, db })
  await app.register(modelRoutes, { db, vault })
  await app.register(storedRoutes, { store, findSummary })

  app.addHook('onClose', async () => {
    await Promise.all([turns.close(), lines.close()])
    await store.close()
  })
}
