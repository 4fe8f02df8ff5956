import type { FastifyInstance, FastifyRequest, onSendAsyncHookHandler, preHandlerHookHandler } from 'fastify'
import type { Db } from '#database/client.ts'
import { originNow, runAs } from '#history/actor.ts'
import { recordEvent } from '#history/record.ts'
import { instanceIdOf } from './instance-params.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a call of the route is in the history, such as `instance.stop`; null for what changes nothing of ours. */
    event?: string | null
  }
}

/** Which part of a request names what an event is about. */
const subjects = ['channel', 'skill_name', 'session_id', 'response_id', 'path', 'source', 'slug']

/** Only what the route has asked for: a caller may send anything beside it. */
function subjectOf({ params, query, body, routeOptions: { schema } }: FastifyRequest): string | undefined {
  for (const [part, asked] of [
    [params, schema?.params],
    [query, schema?.querystring],
    [body, schema?.body],
  ]) {
    if (typeof part !== 'object' || part === null) continue
    const { properties = {} } = (asked ?? {}) as { properties?: object }
    for (const name of subjects) {
      const value = Object.hasOwn(properties, name) ? (part as Record<string, unknown>)[name] : undefined
      if (typeof value === 'string') return value.replaceAll('\0', '\uFFFD') // no text of PostgreSQL holds it
    }
  }
  return undefined
}

/**
 * Has everything that a request changes recorded on its behalf. What changes the database records itself, in its own
 * transaction; for what is changed elsewhere, files and sessions in a sandbox, the event is written once that is done, before
 * the answer. A route that may change something and names no event stops the boot.
 */
export function useEvents(app: FastifyInstance, db: Db): void {
  const begin: preHandlerHookHandler = (request, _reply, done) => {
    const { caller, id, routeOptions } = request
    const subject = subjectOf(request)
    const actor = { type: 'key' as const, ...(caller && { id: caller.keyId }) }
    const type = routeOptions.config.event as string
    runAs({ actor, requestId: id, type, ...(subject !== undefined && { subject }) }, done)
  }
  const record: onSendAsyncHookHandler = async (request, reply) => {
    const { caller, log } = request
    const { type, isRecorded } = originNow()
    if (!caller || reply.statusCode >= 300 || isRecorded || reply.hasHeader('idempotent-replayed')) return
    await recordEvent(db, { organizationId: caller.organizationId, instanceId: instanceIdOf(request) ?? null }).catch(
      (error: unknown) => log.error({ err: error, event: type }, 'what was done could not be recorded'),
    )
  }
  app.addHook('onRoute', (route) => {
    const { method, url, config } = route
    const changes = [method].flat().some((one) => !['GET', 'HEAD', 'OPTIONS'].includes(one))
    if (changes && config?.event === undefined) throw new Error(`${method} ${url} names no event`)
    if (!config?.event) return
    route.preHandler = [begin, ...[route.preHandler ?? []].flat()]
    route.onSend = [record, ...[route.onSend ?? []].flat()]
  })
}
