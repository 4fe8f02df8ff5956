import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { typesOf } from '#history/event-types.ts'
import { keptDays } from '#history/retention.ts'
import { hasPermission } from '#http/caller.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { positionOf, sendPage } from '#http/paging.ts'
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

/** The routes of the history: events, their times and their actors. */
export const eventRoutes: FastifyPluginAsyncTypebox<EventDeps> = async (app, { db, publicUrl }) => {
  async function answer(reply: FastifyReply, instanceId: string | undefined, query: Static<typeof EventPage>) {
    const { limit, cursor, after, order = after === undefined ? 'desc' : 'asc', type, request_id } = query
    const { organizationId } = reply.request.caller
    const mayConfigure = hasPermission(reply.request.caller, 'configure')
    const asked = { organizationId, instanceId, requestId: request_id, types: type && typesOf(type), order, after }
    return sendPage(reply, {
      limit,
      position: positionOf(cursor, isPosition),
      item: Event,
      async read(atMost, position) {
        const from = position === undefined ? undefined : Number(position)
        const { rows, next } = await listEvents(db, { ...asked, position: from, limit: atMost })
        return { rows, next: next?.toString() }
      },
      show: (row) => toEvent(row, mayConfigure),
      publicUrl,
    })
  }

  app.get(
    '/v1/instances/:instance_id/events',
    {
      config: { access: 'read', inFlight: 'lists' },
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
      await answer(reply, id, query)
      return reply
    },
  )

  app.get(
    '/v1/organization/events',
    {
      config: { access: 'org', inFlight: 'lists' },
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
      if (instance_id !== undefined && !isId(instance_id)) return []
      await answer(reply, instance_id && canonicalId(instance_id), query)
      return reply
    },
  )
}
