import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { Db } from '../database/client.ts'
import { originNow, runAs } from '../platform/origin.ts'
import { recordEvent } from './store.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a call of the route is in the history, such as `instance.stop`; null for what changes nothing of ours. */
    event?: string | null
  }
}

/** Which part of a request names what an event is about. */
const subjects = ['channel', 'skill_name', 'session_id', 'path', 'source', 'slug']

function subjectOf({ params, query, body }: FastifyRequest): string | undefined {
  for (const part of [params, query, body]) {
    if (typeof part !== 'object' || part === null) continue
    for (const name of subjects) {
      const value = (part as Record<string, unknown>)[name]
      if (typeof value === 'string') return value
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
  app.addHook('onRoute', ({ method, url, config }) => {
    const changes = [method].flat().some((one) => !['GET', 'HEAD', 'OPTIONS'].includes(one))
    if (changes && config?.event === undefined) throw new Error(`${method} ${url} names no event`)
  })
  app.addHook('preHandler', (request, _reply, done) => {
    const { event } = request.routeOptions.config
    const { caller, id } = request
    if (!event) return done()
    const subject = subjectOf(request)
    const actor = { type: 'key' as const, ...(caller && { id: caller.keyId }) }
    runAs({ actor, requestId: id, type: event, ...(subject !== undefined && { subject }) }, done)
  })
  app.addHook('onSend', async (request, reply) => {
    const { caller, params } = request
    const origin = originNow()
    if (origin.type === undefined || !caller || reply.statusCode >= 300) return
    if (origin.isRecorded || reply.hasHeader('idempotent-replayed')) return
    const { instance_id: instanceId } = params as { instance_id?: string }
    await recordEvent(db, {
      organizationId: caller.organizationId,
      instanceId: instanceId?.toLowerCase() ?? null,
    }).catch((error: unknown) => {
      request.log.error({ err: error, event: origin.type }, 'what was done could not be recorded')
    })
  })
}
