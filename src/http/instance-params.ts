import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { canonicalId } from '#platform/ids.ts'
import { Uuid } from '#platform/typebox.ts'

/** The path parameters of an instance's routes. Any text passes: a malformed id is an unknown one, a 404. */
export const InstanceParams = Type.Object({ instance_id: Uuid('The id of the instance.') })

/** The id of the instance that a request's path names; undefined on routes that are about no instance. */
export const instanceIdOf = ({ params }: FastifyRequest): string | undefined =>
  (params as { instance_id?: string }).instance_id

/** Makes `params.instance_id` canonical, for every hook and handler that is added afterwards. */
export function useInstanceIds(app: FastifyInstance): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const id = instanceIdOf(request)
    if (id !== undefined) Object.assign(request.params as object, { instance_id: canonicalId(id) })
    done()
  })
}
