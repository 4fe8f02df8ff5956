import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { getInstance, ownModel } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'
import { Models } from './schemas.ts'

/** The route that lists models, which clients of the formats call before they offer a choice. */
export const modelRoutes: FastifyPluginAsyncTypebox<{ db: Db; vault: Vault }> = async (app, { db, vault }) => {
  app.get(
    '/v1/instances/:instance_id/models',
    {
      config: { access: 'interact', openaiErrors: true },
      schema: {
        operationId: 'listModels',
        summary: 'List the models of an agent',
        description:
          '`openclaw` is the agent with its configured model. You may also name any other model of its provider, ' +
          'listed or not.',
        tags: ['responses'],
        params: InstanceParams,
        response: { 200: Models, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      const created = Math.floor(instance.createdAt.getTime() / 1000)
      return {
        object: 'list' as const,
        data: [
          { id: 'openclaw', object: 'model' as const, created, owned_by: 'openclaw' },
          { id: ownModel(vault, instance), object: 'model' as const, created, owned_by: instance.modelProvider },
        ],
      }
    },
  )
}
