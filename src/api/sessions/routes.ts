import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '#database/client.ts'
import { deleteSessionResponses } from '#database/delete-responses.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, PageQuery, positionOf } from '#http/paging.ts'
import { isInScope } from '#http/session-scope.ts'
import { NoBody } from '#http/validation.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { deleteSession, listSessions, readSession, resetSession } from './gateway-sessions.ts'
import { Session, SessionHistory } from './schemas.ts'

export interface SessionDeps {
  db: Db
  askGateway: AskGateway
  publicUrl(): string
}

const SessionParams = Type.Object({
  ...InstanceParams.properties,
  session_id: Type.String({ description: 'The id that messages are sent to; `main` always exists.' }),
})

const defaultLimit = 50
const SessionPage = Type.Object(
  {
    ...PageQuery.properties,
    limit: {
      ...PageQuery.properties.limit,
      maximum: 100,
      default: defaultLimit,
      description: 'The largest number of items in the answer.',
    },
  },
  { additionalProperties: false },
)

const isOffset = (text: string) => /^(0|[1-9]\d{0,8})$/.test(text)
const pageOf = ({ limit, cursor }: { limit: number; cursor?: string }) => ({
  limit,
  offset: Number(positionOf(cursor, isOffset) ?? 0),
})

const gatewayFailures = failures(400, 404, 409, 502, 504)
const config = { access: 'sessions' } as const

/** The routes of sessions that messages to the API have started, as the running agent reports them. */
export const sessionRoutes: FastifyPluginAsyncTypebox<SessionDeps> = async (app, { db, askGateway, publicUrl }) => {
  app.get(
    '/v1/instances/:instance_id/sessions',
    {
      config: { ...config, session: 'handler' },
      schema: {
        operationId: 'listSessions',
        summary: 'List sessions',
        description:
          'The sessions that messages were sent to, the latest change first, without conversations on chat ' +
          'channels. Pages are not a snapshot: a session that changes between two calls may appear on both pages. ' +
          'The instance must be `running`.',
        tags: ['sessions'],
        params: InstanceParams,
        querystring: SessionPage,
        response: { 200: Type.Array(Session), ...gatewayFailures },
      },
    },
    async ({ caller, params, query }, reply) => {
      const page = pageOf(query)
      const { sessions, next } = await askGateway(caller.organizationId, params.instance_id, (gateway) =>
        listSessions(gateway, page, (id) => isInScope(caller.sessions, id)),
      )
      if (next !== undefined) linkNext(reply, publicUrl(), String(next))
      return sessions
    },
  )

  app.get(
    '/v1/instances/:instance_id/sessions/:session_id',
    {
      config,
      schema: {
        operationId: 'getSession',
        summary: 'Read a session with its messages',
        description:
          'Answers the newest messages; the header `Link` names the page with older ones. A page may hold fewer ' +
          'messages than `limit`, because calls of tools and their results count and are left out. The instance ' +
          'must be `running`.',
        tags: ['sessions'],
        params: SessionParams,
        querystring: SessionPage,
        response: { 200: SessionHistory, ...gatewayFailures },
      },
    },
    async ({ caller, params, query }, reply) => {
      const page = pageOf(query)
      const { history, next } = await askGateway(caller.organizationId, params.instance_id, (gateway) =>
        readSession(gateway, params.session_id, page),
      )
      if (next !== undefined) linkNext(reply, publicUrl(), String(next))
      return history
    },
  )

  app.post(
    '/v1/instances/:instance_id/sessions/:session_id/reset',
    {
      config: { ...config, event: 'session.reset' },
      schema: {
        operationId: 'resetSession',
        summary: 'Reset a session',
        description:
          'Deletes the messages of the session, and its stored responses; the session stays. A running turn fails. ' +
          'The instance must be `running`.',
        tags: ['sessions'],
        params: SessionParams,
        body: NoBody,
        response: { 204: Type.Null(), ...gatewayFailures },
      },
    },
    async ({ caller, params }, reply) => {
      await askGateway(caller.organizationId, params.instance_id, (gateway) => resetSession(gateway, params.session_id))
      await deleteSessionResponses(db, params.instance_id, sessionKey(params.session_id))
      return reply.code(204).send(null)
    },
  )

  app.delete(
    '/v1/instances/:instance_id/sessions/:session_id',
    {
      config: { ...config, event: 'session.delete' },
      schema: {
        operationId: 'deleteSession',
        summary: 'Delete a session',
        description:
          'Deletes the session with its messages and its stored responses; a running turn fails. `main` always ' +
          'exists, so it is reset instead. The instance must be `running`.',
        tags: ['sessions'],
        params: SessionParams,
        response: { 204: Type.Null(), ...gatewayFailures },
      },
    },
    async ({ caller, params }, reply) => {
      await askGateway(caller.organizationId, params.instance_id, (gateway) =>
        deleteSession(gateway, params.session_id),
      )
      await deleteSessionResponses(db, params.instance_id, sessionKey(params.session_id))
      return reply.code(204).send(null)
    },
  )
}
