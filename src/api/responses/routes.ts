import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Db } from '#database/client.ts'
import { clientLeft } from '#http/client-left.ts'
import { claimKey, idempotent } from '#http/idempotency.ts'
import type { InFlight } from '#http/in-flight.ts'
import { InstanceParams } from '#http/instance-params.ts'
import type { FindSummary } from '#instances/find.ts'
import type { Vault } from '#platform/secrets.ts'
import { keepAnswer, replyAgain } from '#turns/keep-answer.ts'
import { beginTurn, jsonType, replyWithTurn, serverSentEvents } from '#turns/reply.ts'
import { maxTurnBytes, turnBehaviour, turnFailures, turnRouteConfig } from '#turns/route.ts'
import type { Turns } from '#turns/turns.ts'
import { acceptBackground } from './background/accept.ts'
import { type FollowParts, replyWithEvents } from './background/follow-response.ts'
import type { Background } from './background/use-background.ts'
import { compactionRoutes } from './compaction-routes.ts'
import { CreateResponse } from './format/request-schema.ts'
import type { ResponseObject } from './format/response-schema.ts'
import { serverSentEvent, terminalEvent } from './format/response-writer.ts'
import { requestedSessionKey } from './format/session.ts'
import { readFormat, requireFormat } from './format/text-format.ts'
import { runResponse } from './run-response.ts'
import { BySession, responseAnswers } from './schemas.ts'
import { storedRoutes } from './stored-routes.ts'
import { taggedBodies } from './validation.ts'
import { webSocketRoutes } from './web-socket.ts'

export interface ResponseDeps {
  db: Db
  /** The id of this process in the table `processes`. */
  processId: string
  vault: Vault
  turns: Turns
  background: Background
  findSummary: FindSummary
  /** The base URL for clients. */
  publicUrl(): string
  /** Counts a turn on an open WebSocket as a request. Throws AppError rate_limited when there are too many. */
  countTurn?: (request: FastifyRequest, reply: FastifyReply) => Promise<void>
  /** Limits the turns on open WebSockets. */
  inFlight?: InFlight
}

const lastOfStream = 'data: [DONE]\n\n'

/** Whether a response, as JSON, is kept for its `Idempotency-Key`: a turn that failed or was cancelled is not. */
function hasAnswer(json: string): boolean {
  const { status } = JSON.parse(json) as ResponseObject
  return status === 'completed' || status === 'incomplete'
}

/** The routes to talk to the agent of a running instance, and to read its responses later. */
export const responseRoutes: FastifyPluginAsyncTypebox<ResponseDeps> = async (app, deps) => {
  const { db, vault, processId, turns, background, findSummary, publicUrl, countTurn, inFlight } = deps
  const { store, rows, watches, accepting } = background
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort()) // clients of streams go on at other processes
  const followParts: FollowParts = { rows, findCaller: turns.findCaller, inFlight, closing: closing.signal }

  const answer = async (request: FastifyRequest, reply: FastifyReply, instanceId: string, sessionId?: string) => {
    const { caller, log } = request
    const { organizationId, sessions } = caller
    const body = request.body as CreateResponse
    const session = { organizationId, instanceId, sessionKey: requestedSessionKey(body, sessionId, sessions) }
    if (body.background) {
      // Before the transaction, which would hold a connection meanwhile.
      await requireFormat(readFormat(body.text?.format), { organizationId }, clientLeft(reply))
      const accept = (into: Db) => acceptBackground(accepting, { caller, session, body, into })
      const response = await idempotent({ db, vault }, request, reply, accept, { isOneStatement: true })
      background.wake()
      if (!body.stream) return reply.type(jsonType).send(JSON.stringify(response) as never)
      const { id } = response
      const find = () => store.find({ organizationId, instanceId, sessions: null }, id)
      return replyWithEvents(reply, followParts, { id, after: -1, find })
    }
    const isStreamed = body.stream === true
    const claim = await claimKey({ db, vault, processId }, request)
    if (claim && !('store' in claim)) {
      // As a stream it is the last event alone.
      const lastEvent = () => serverSentEvent(terminalEvent(claim.body as ResponseObject, 0))
      return replyAgain(reply, claim.body, isStreamed ? `${lastEvent()}${lastOfStream}` : null) as never
    }
    const turn = beginTurn(reply, turns)
    const answered = runResponse({ db, turns, store, vault, watches }, turn, { caller, session, body, isStreamed, log })
    const run = claim ? keepAnswer(answered, claim, hasAnswer) : answered
    return replyWithTurn(reply, turn, serverSentEvents(run, serverSentEvent, lastOfStream))
  }

  const config = { ...turnRouteConfig, idempotency: 'transaction' } as const // through `idempotent` and `claimKey`
  const createRoute = { config, bodyLimit: maxTurnBytes, validatorCompiler: taggedBodies }
  const createSchema = {
    tags: ['responses'],
    body: CreateResponse,
    response: { ...responseAnswers, ...turnFailures },
  }

  app.post(
    '/v1/instances/:instance_id/responses',
    {
      ...createRoute,
      config: { ...config, session: 'handler' },
      schema: {
        ...createSchema,
        operationId: 'createResponse',
        summary: 'Send a message to an agent',
        description:
          'Sends a message in the session that `conversation` names, by default `main`. The session remembers the ' +
          `conversation. ${turnBehaviour}`,
        params: InstanceParams,
      },
    },
    (request, reply) => answer(request, reply, request.params.instance_id),
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

  await app.register(webSocketRoutes, { db, turns, store, vault, watches, publicUrl, findSummary, countTurn, inFlight })
  await app.register(compactionRoutes, { db, processId, turns, store, vault })
  await app.register(storedRoutes, { store, findSummary, followParts })
}
