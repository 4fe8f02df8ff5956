import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { keptDays } from '#history/retention.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, positionOf } from '#http/paging.ts'
import { getInstance } from '#instances/row.ts'
import { listEvents } from './list.ts'
import { defaultLimit, Event, EventPage, toEvent } from './schemas.ts'

export interface EventDeps {
  db: Db
  publicUrl(): string
}

const isPosition = (text: string) => /^[1-9]\d{0,14}$/.test(text)
const historyDescription =
  `Newest first. Every request for a change and every change of state, each once, for ${keptDays} days. ` +
  'Messages to agents are not included.'

/** The routes of the history: what happened, when, and who caused it. */
export const eventRoutes: FastifyPluginAsyncTypebox<EventDeps> = async (app, { db, publicUrl }) => {
  async function answer(
    reply: FastifyReply,
    of: Parameters<typeof listEvents>[1],
    { limit = defaultLimit, cursor }: { limit?: number; cursor?: string },
  ) {
    const position = positionOf(cursor, isPosition)
    const { rows, next } = await listEvents(db, of, {
      limit,
      position: position === undefined ? undefined : Number(position),
    })
    if (next !== undefined) linkNext(reply, publicUrl(), String(next))
    return rows.map(toEvent)
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
      return answer(reply, { instanceId: id }, query)
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
        querystring: EventPage,
        response: { 200: Type.Array(Event), ...failures(400) },
      },
    },
    async ({ caller, query }, reply) => answer(reply, { organizationId: caller.organizationId }, query),
  )
}
