import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { typesOf } from '#history/event-types.ts'
import { keptDays } from '#history/retention.ts'
import { hasPermission } from '#http/auth.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, positionOf } from '#http/paging.ts'
import { getInstance } from '#instances/row.ts'
import { canonicalId, isId } from '#platform/ids.ts'
import { listEvents } from './list.ts'
import { Event, EventPage, OrganizationEventPage, toEvent } from './schemas.ts'

export interface EventDeps {
  db: Db
  publicUrl(): string
}

const isPosition = (text: string) => /^[1-9]\d{0,14}$/.test(text)
const historyDescription =
  `Every request for a change and every change of state, each once, for ${keptDays} days. Messages to agents are not ` +
  'included. Newest first; to follow the history, read it with `after=0`, and then again and again with the id of ' +
  'the last event that you have. Such a reader misses no event and gets none twice.'

/** The routes of the history: what happened, when, and who caused it. */
export const eventRoutes: FastifyPluginAsyncTypebox<EventDeps> = async (app, { db, publicUrl }) => {
  async function answer(reply: FastifyReply, instanceId: string | undefined, query: Static<typeof EventPage>) {
    const { limit, cursor, after, order = after === undefined ? 'desc' : 'asc', type, request_id } = query
    const position = positionOf(cursor, isPosition)
    const { rows, next } = await listEvents(db, {
      organizationId: reply.request.caller.organizationId,
      instanceId,
      requestId: request_id,
      types: type && typesOf(type),
      order,
      after,
      position: position === undefined ? undefined : Number(position),
      limit,
    })
    if (next !== undefined) linkNext(reply, publicUrl(), String(next))
    const mayConfigure = hasPermission(reply.request.caller, 'configure')
    return rows.map((row) => toEvent(row, mayConfigure))
  }

  app.get(
    '/v1/instances/:instance_id/events',
    {
      config: { access: 'read' },
      schema: {
        operationId: 'listInstanceEvents',
        summary: 'Read the history of an instance',
        description: historyDescription,
        tags: ['instances'],
        params: InstanceParams,
        querystring: EventPage,
        response: { 200: Type.Array(Event), ...failures(400, 404) },
      },
    },
    async ({ caller, params, query }, reply) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return answer(reply, id, query)
    },
  )

  app.get(
    '/v1/organization/events',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'listEvents',
        summary: 'Read the history of the organization',
        description: `Includes the history of all its instances. ${historyDescription}`,
        tags: ['organization'],
        querystring: OrganizationEventPage,
        response: { 200: Type.Array(Event), ...failures(400) },
      },
    },
    async ({ query: { instance_id, ...query } }, reply) => {
      if (instance_id === undefined) return answer(reply, undefined, query)
      return isId(instance_id) ? answer(reply, canonicalId(instance_id), query) : []
    },
  )
}
