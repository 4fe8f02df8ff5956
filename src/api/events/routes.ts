import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { typesOf } from '#history/event-types.ts'
import { keptDays } from '#history/retention.ts'
import { hasPermission } from '#http/caller.ts'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { positionOf, sendPage } from '#http/paging.ts'
import { getInstance } from '#instances/row.ts'
import { canonicalId, isId } from '#platform/ids.ts'
import { sendEvents, serverSentEvents } from '#turns/reply.ts'
import { listEvents } from './list.ts'
import {
  Event,
  EventPage,
  EventStream,
  FollowedEvents,
  LastEvent,
  OrganizationEventPage,
  stepType,
  toEvent,
} from './schemas.ts'
import { followHistory, serverSentHistory } from './stream.ts'
import { createEventTail } from './tail.ts'

export interface EventDeps {
  db: Db
  publicUrl(): string
}

/** A connection is closed after its client has taken no bytes for this long; comments are sent more often. */
const idleTimeoutMs = 60_000

const isPosition = (text: string) => /^[1-9]\d{0,14}$/.test(text)
const historyDescription =
  `Every request for a change and every change of state, each once, for ${keptDays} days. Messages to agents are not ` +
  'included. Newest first; to follow the history, read it with `after=0`, and then again and again with the id of ' +
  'the last event that you have. Such a reader misses no event and gets none twice.'

const streamDescription =
  'Server-sent events. The data of each message is an event of the history, in its order, each once, and its `id` is ' +
  'that of the event: send the last one as `Last-Event-ID` when you connect again, as `EventSource` does, and you miss ' +
  'nothing. Without it and without `after` the stream begins with the next event. The steps of starts and stops come ' +
  'as they begin, as `{"type": "instance.step", "instance_id", "step", "created_at"}`, without an id: they are not in ' +
  'the history. A comment every 15 seconds keeps the connection open. The stream ends when the key is changed or ' +
  'revoked, and when the server closes.'

/** The routes of the history: events, their times and their actors. */
export const eventRoutes: FastifyPluginAsyncTypebox<EventDeps> = async (app, { db, publicUrl }) => {
  const tail = createEventTail(db, app.log)
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort()) // clients go on at another process, or after the restart

  async function stream(
    reply: FastifyReply,
    instanceId: string | undefined,
    { type, after }: Static<typeof FollowedEvents>,
    lastId: number | undefined,
  ) {
    const { caller } = reply.request
    const signal = AbortSignal.any([clientLeft(reply), closing.signal])
    reply.raw.setTimeout(idleTimeoutMs, () => reply.raw.destroy())
    const asked = {
      caller,
      instanceId,
      types: type && typesOf(type),
      hasSteps: type === undefined || type.includes(stepType) || type.includes('instance.*'),
      after: lastId ?? after,
    }
    const batches = followHistory({ db, tail }, asked, signal)
    const pieces = serverSentEvents(batches, serverSentHistory)
    return sendEvents(reply.header('x-accel-buffering', 'no'), await pieces.next(), pieces)
  }

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

  app.get(
    '/v1/instances/:instance_id/events/stream',
    {
      config: { access: 'read', inFlight: 'sockets' },
      schema: {
        operationId: 'streamInstanceEvents',
        summary: 'Follow the history of an instance',
        description: streamDescription,
        tags: ['instances'],
        params: InstanceParams,
        querystring: FollowedEvents,
        headers: LastEvent,
        response: { 200: EventStream, ...failures(404) },
      },
    },
    async ({ caller, params, query, headers }, reply) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      return stream(reply, id, query, headers['last-event-id'])
    },
  )

  app.get(
    '/v1/events/stream',
    {
      config: { access: 'any', inFlight: 'sockets' },
      schema: {
        operationId: 'streamEvents',
        summary: 'Follow the history of all instances',
        description: `A scoped key gets the events of its instances, others those of the organization too. ${streamDescription}`,
        tags: ['organization'],
        querystring: FollowedEvents,
        headers: LastEvent,
        response: { 200: EventStream },
      },
    },
    async ({ caller, query, headers }, reply) => {
      if (!hasPermission(caller, 'read')) throw new AppError('lacks_permission', texts.lacksPermission('read'))
      return stream(reply, undefined, query, headers['last-event-id'])
    },
  )
}
