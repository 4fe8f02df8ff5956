import { Type } from '@sinclair/typebox'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { canonicalId } from '#platform/ids.ts'
import { Uuid } from '#platform/typebox.ts'

/** The path parameters of an instance's routes. Accepts any text: a malformed id is unknown, a 404. */
export const InstanceParams = Type.Object({ instance_id: Uuid('The id of the instance.') })

/** The instance id in a request's path; undefined on routes without one. */
export const instanceIdOf = ({ params }: FastifyRequest): string | undefined =>
  (params as { instance_id?: string }).instance_id

/** Makes `params.instance_id` canonical, for every later hook and handler. */
export function useInstanceIds(app: FastifyInstance): void {
  app.addHook('onRequest', (request, _reply, done) => {
    const id = instanceIdOf(request)
    if (id !== undefined) Object.assign(request.params as object, { instance_id: canonicalId(id) })
    done()
  })
}
