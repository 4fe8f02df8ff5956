import type { FastifyInstance, FastifyRequest, onSendAsyncHookHandler, preHandlerHookHandler } from 'fastify'
import type { Db } from '#database/client.ts'
import { currentOrigin, hasEvent, runAs } from '#history/actor.ts'
import type { EventType } from '#history/event-types.ts'
import { recordEvent } from '#history/record.ts'
import { instanceIdOf } from './instance-params.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The type of the route's event, such as `instance.stop`; null for a route that changes nothing. */
    event?: EventType | null
  }
}

/** The possible parameters for the subject of an event; the first one found wins. */
const subjectNames = [
  'channel',
  'skill_name',
  'session_id',
  'response_id',
  'approval_id',
  'job_id',
  'path',
  'source',
  'slug',
]

/** The value of the first such parameter in the schema of the route: a caller can send others. */
function subjectOf({ params, query, body, routeOptions: { schema } }: FastifyRequest): string | undefined {
  for (const [part, partSchema] of [
    [params, schema?.params],
    [query, schema?.querystring],
    [body, schema?.body],
  ]) {
    if (typeof part !== 'object' || part === null) continue
    const { properties = {} } = (partSchema ?? {}) as { properties?: object }
    for (const name of subjectNames) {
      const value = Object.hasOwn(properties, name) ? (part as Record<string, unknown>)[name] : undefined
      if (typeof value === 'string') return value.replaceAll('\0', '\uFFFD') // PostgreSQL cannot store it in text
    }
  }
  return undefined
}

/**
 * Records the change of a request as an event, with its caller. Changes of the database record themselves, in their own
 * transactions. For changes elsewhere, such as files in a sandbox, the event is written after the change and before the
 * answer. A route that can change data and has no `event` stops the start of the server.
 */
export function useEvents(app: FastifyInstance, db: Db): void {
  const begin: preHandlerHookHandler = (request, _reply, done) => {
    const { caller, id, routeOptions } = request
    const subject = subjectOf(request)
    const actor = { type: 'key' as const, ...(caller && { id: caller.keyId }) }
    const type = routeOptions.config.event as EventType
    runAs({ actor, requestId: id, type, ...(subject !== undefined && { subject }) }, done)
  }
  const record: onSendAsyncHookHandler = async (request, reply) => {
    const { caller, log } = request
    const { type } = currentOrigin()
    if (!caller || reply.statusCode >= 300 || hasEvent() || reply.hasHeader('idempotent-replayed')) return
    await recordEvent(db, { organizationId: caller.organizationId, instanceId: instanceIdOf(request) ?? null }).catch(
      (error: unknown) => log.error({ err: error, event: type }, 'failed to record the event of a request'),
    )
  }
  app.addHook('onRoute', (route) => {
    const { method, url, config } = route
    const canChange = [method].flat().some((one) => !['GET', 'HEAD', 'OPTIONS'].includes(one))
    if (canChange && config?.event === undefined) throw new Error(`${method} ${url} has no event`)
    if (!config?.event) return
    route.preHandler = [begin, ...[route.preHandler ?? []].flat()]
    route.onSend = [record, ...[route.onSend ?? []].flat()]
  })
}
