import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { modelProviders, providerKeys } from '#database/schema.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { getInstance, ownModel } from '#instances/row.ts'
import { findModel, listedModels, retiredModels } from '#openclaw/models/models.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import type { Vault } from '#platform/secrets.ts'
import { InstanceModels, ListedModels, toListedModel, toRetiredModel } from './schemas.ts'

/** The routes that list models. Clients of the formats call them before they offer a choice. */
export const modelRoutes: FastifyPluginAsyncTypebox<{ db: Db; vault: Vault }> = async (app, { db, vault }) => {
  /** The providers that an organization has a key for. */
  async function providersWithKey(organizationId: string): Promise<ReadonlySet<string>> {
    const { provider } = providerKeys
    const rows = await db.select({ provider }).from(providerKeys).where(eq(providerKeys.organizationId, organizationId))
    return new Set(rows.map((row) => row.provider))
  }

  app.get(
    '/v1/models',
    {
      config: { access: 'org', openaiErrors: true },
      schema: {
        operationId: 'listModels',
        summary: 'List the models of all providers',
        description:
          'The models that Chowder knows, with what they can do, for instances of the newest OpenClaw release. You ' +
          'may also name a model that is not listed: it is assumed to see images. `available` says which of them ' +
          'your organization has a key for.',
        tags: ['responses'],
        response: { 200: ListedModels },
      },
    },
    async ({ caller }) => {
      const withKey = await providersWithKey(caller.organizationId)
      const data = modelProviders.flatMap((provider) => [
        ...listedModels(defaultRelease, provider).map((model) =>
          toListedModel(defaultRelease, provider, model, withKey.has(provider)),
        ),
        ...retiredModels(defaultRelease, provider).map((model) => toRetiredModel(provider, model)),
      ])
      return { object: 'list' as const, data }
    },
  )

  app.get(
    '/v1/instances/:instance_id/models',
    {
      config: { access: 'interact', session: 'none', openaiErrors: true },
      schema: {
        operationId: 'listInstanceModels',
        summary: 'List the models of an agent',
        description:
          '`openclaw` is the agent with its configured model, which comes second. You may also name any other model ' +
          'of its provider, listed or not.',
        tags: ['responses'],
        params: InstanceParams,
        response: { 200: InstanceModels, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const instance = await getInstance(db, caller.organizationId, params.instance_id)
      const { openclawVersion: release, modelProvider: provider, unlistedModels } = instance
      const hasKey = (await providersWithKey(caller.organizationId)).has(provider)
      const listed = listedModels(release, provider).map(({ id }) => id)
      const ids = new Set([ownModel(vault, instance), ...listed, ...unlistedModels])
      const created = Math.floor(instance.createdAt.getTime() / 1000)
      const models = [...ids].map((id) => toListedModel(release, provider, findModel(release, provider, id), hasKey))
      return {
        object: 'list' as const,
        data: [{ id: 'openclaw', object: 'model' as const, created, owned_by: 'openclaw' }, ...models],
      }
    },
  )
}
