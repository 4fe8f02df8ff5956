import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { NoBody } from '#http/validation.ts'
import type { FindSummary } from '#instances/find.ts'
import { publicStatus } from '#instances/status.ts'
import { jsonType } from '#turns/reply.ts'
import { type FollowParts, replyWithEvents } from './background/follow-response.ts'
import { ResponseObject } from './format/response-schema.ts'
import { DeletedResponse, InputItems, InputItemsPage, responseAnswers, StreamFrom } from './schemas.ts'
import { type ResponseStore, responseNotFound } from './store/response-store.ts'

const ByResponse = Type.Object({
  ...InstanceParams.properties,
  response_id: Type.String({ description: 'The id of the response, `resp_…`.' }),
})

/** The routes to read responses again, to cancel those in progress, and to delete them. */
export const storedRoutes: FastifyPluginAsyncTypebox<{
  store: ResponseStore
  findSummary: FindSummary
  followParts: FollowParts
}> = async (app, { store, findSummary, followParts }) => {
  /** Throws AppError not_found for an instance of another organization and for an unknown one alike. */
  async function ownerOf({ caller, params }: FastifyRequest) {
    const { organizationId, sessions } = caller
    const instance = await findSummary(organizationId, (params as { instance_id: string }).instance_id)
    // A terminated instance has no responses, even if they are not deleted yet.
    if (publicStatus(instance) === 'terminated') throw responseNotFound()
    const { id } = instance
    return { organizationId, instanceId: id, sessions }
  }

  const read = { access: 'interact', session: 'handler', openaiErrors: true } as const
  const found = failures(404)

  app.get(
    '/v1/instances/:instance_id/responses/:response_id',
    {
      config: read,
      schema: {
        operationId: 'getResponse',
        summary: 'Read a response again',
        description:
          'Responses are stored for 30 days, at most the latest 1,000 of an instance, unless they were created with ' +
          '`"store": false`. They are deleted with their session and their instance. With `stream=true` the events of a ' +
          'background response, from any number on: those of a turn that runs as they come, and those of an ended one ' +
          'for ten minutes; later only the last event.',
        tags: ['responses'],
        params: ByResponse,
        querystring: StreamFrom,
        response: { ...responseAnswers, ...failures(400, 404) },
      },
    },
    async (request, reply) => {
      const { response_id: id } = request.params
      const { stream = false, starting_after: after = -1 } = request.query
      const owner = await ownerOf(request)
      const response = await store.find(owner, id)
      if (stream) return replyWithEvents(reply, followParts, { id, after, find: () => store.find(owner, id) })
      return reply.type(jsonType).send(JSON.stringify(response) as never)
    },
  )

  app.get(
    '/v1/instances/:instance_id/responses/:response_id/input_items',
    {
      config: read,
      schema: {
        operationId: 'listInputItems',
        summary: 'Read the input of a response',
        description: 'The items of the request. The bytes of images and files are not stored.',
        tags: ['responses'],
        params: ByResponse,
        querystring: InputItemsPage,
        response: { 200: InputItems, ...found },
      },
    },
    async (request) => {
      const { limit = 20, order = 'desc', after } = request.query
      const all = await store.findInput(await ownerOf(request), request.params.response_id)
      const inOrder = order === 'asc' ? all : all.toReversed()
      const rest = inOrder.slice(inOrder.findIndex(({ id }) => id === after) + 1)
      const data = rest.slice(0, limit)
      const [first_id = null, last_id = null] = [data[0]?.id, data.at(-1)?.id]
      return { object: 'list' as const, data, first_id, last_id, has_more: rest.length > data.length }
    },
  )

  app.post(
    '/v1/instances/:instance_id/responses/:response_id/cancel',
    {
      config: { ...read, event: 'response.cancel' },
      schema: {
        operationId: 'cancelResponse',
        summary: 'Cancel a response',
        description:
          'Ends the turn of the agent. A request that waits for it gets the response so far, with the status ' +
          '`cancelled`; a stream ends with `response.incomplete`. The session keeps ' +
          'the message. 409 once the response has ended.',
        tags: ['responses'],
        params: ByResponse,
        body: NoBody,
        response: { 200: ResponseObject, ...failures(404, 409) },
      },
    },
    async (request, reply) => {
      const owner = await ownerOf(request)
      const { response_id: id } = request.params
      await store.cancel(owner, id)
      return reply.type(jsonType).send(JSON.stringify(await store.find(owner, id)) as never)
    },
  )

  app.delete(
    '/v1/instances/:instance_id/responses/:response_id',
    {
      config: { ...read, event: 'response.delete' },
      schema: {
        operationId: 'deleteResponse',
        summary: 'Delete a response',
        description: 'Deletes the contents of the response. The agent remembers the turn until you DELETE the session.',
        tags: ['responses'],
        params: ByResponse,
        response: { 200: DeletedResponse, ...failures(404, 409) },
      },
    },
    async (request) => {
      const { response_id: id } = request.params
      await store.delete(await ownerOf(request), id)
      return { id, object: 'response' as const, deleted: true as const }
    },
  )
}
