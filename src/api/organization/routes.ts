import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '#database/client.ts'
import type { Tier } from '#database/schema.ts'
import { clientLeft } from '#http/client-left.ts'
import { failures } from '#http/openapi.ts'
import type { CountRequest } from '#http/rate-limit.ts'
import { noSettings } from '#instances/agent-settings.ts'
import { requireIsolation } from '#instances/isolation.ts'
import { recordKeyRefusal } from '#instances/provider-key-refusal.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import type { Vault } from '#platform/secrets.ts'
import type { SignupMode } from '#settings/exposure.ts'
import type { ResourceSettings } from '#settings/resources.ts'
import { deleteOrganization } from './delete.ts'
import { requireAcceptedKeys, storedModelKeys, testModelKeys } from './model-keys.ts'
import {
  DeleteOrganization,
  ModelKeyTests,
  NewOrganization,
  Organization,
  PatchOrganization,
  Signup,
  TestModelKeys,
  toOrganization,
} from './schemas.ts'
import { requireSignup, SignupHeaders } from './signup-token.ts'
import { getOrganization, patchOrganization, signUp } from './store.ts'

export interface OrganizationDeps {
  db: Db
  vault: Vault
  queue: InstanceQueue
  /** Called with the hash of each deleted key, before the answer. */
  forgetCaller(keyHash: Buffer): void
  signup: SignupMode
  /** Tier of a new organization. */
  defaultTier: Tier
  baseUrls: BaseUrls
  resources: ResourceSettings
  /** Whether agents' tools can have a separate room. */
  hasTwoRooms(): boolean
  /** Whether only one organization is allowed. */
  isOneOrganization(): boolean
}

/** Limit of a call without a key. */
const maxSignupBytes = 64 * 1024

interface RouteDeps extends OrganizationDeps {
  countKeyTest: CountRequest
  countFailure: CountRequest
}

/** The routes to sign up, and to read, change and delete an organization. */
export const organizationRoutes: FastifyPluginAsyncTypebox<RouteDeps> = async (app, deps) => {
  const { db, vault, queue, forgetCaller, defaultTier, baseUrls, resources, hasTwoRooms, countKeyTest } = deps

  app.post(
    '/v1/organization/signup',
    {
      config: { access: 'public', isSignup: true, event: 'organization.create' },
      bodyLimit: maxSignupBytes,
      onRequest: requireSignup(deps),
      schema: {
        operationId: 'signUp',
        summary: 'Sign up',
        description:
          'Creates an organization and its first key. The key is in this answer only: keep it. Where others than its ' +
          'operator reach the server, it takes the token of the server, or is closed.',
        tags: ['organization'],
        headers: SignupHeaders,
        body: Signup,
        response: { 201: NewOrganization, ...failures(401, 429) },
      },
    },
    async ({ body }, reply) => {
      const { organization, key } = await signUp(db, body.name, defaultTier, { isOnly: deps.isOneOrganization() })
      return reply.code(201).send({ organization: toOrganization(organization, resources, []), api_key: key })
    },
  )

  app.get(
    '/v1/organization',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'getOrganization',
        summary: 'Read the organization',
        description:
          'The organization of the key, its plan, its budgets, and the model providers that it has a key for: when each ' +
          'key was set, and when its provider last refused it.',
        tags: ['organization'],
        response: { 200: Organization },
      },
    },
    async ({ caller }) => {
      const { organization, keys, budgets } = await getOrganization(db, caller.organizationId)
      return toOrganization(organization, resources, keys, budgets)
    },
  )

  app.patch(
    '/v1/organization',
    {
      config: { access: 'org', event: 'organization.update' },
      schema: {
        operationId: 'updateOrganization',
        summary: 'Change the organization',
        description:
          'Changes the name and the budgets, and sets or removes keys of model providers. A provider that is not in ' +
          'the body keeps its key. Running instances use a new key from their next turn, without a restart. With ' +
          '`verify` each provider is asked first whether it accepts its key. `budgets` replaces those of the organization.',
        tags: ['organization'],
        body: PatchOrganization,
        response: { 200: Organization, ...failures(400, 502) },
      },
    },
    async (request, reply) => {
      const { body, caller } = request
      requireIsolation(body.isolation ?? 'one_room', noSettings, hasTwoRooms())
      if (body.verify && body.model_api_keys) {
        await countKeyTest(request, reply)
        await requireAcceptedKeys(baseUrls, body.model_api_keys, clientLeft(reply))
      }
      const { organization, keys, budgets, isDue } = await patchOrganization(
        db,
        vault,
        caller.organizationId,
        body,
        resources,
      )
      if (isDue) queue.enqueue()
      return toOrganization(organization, resources, keys, budgets)
    },
  )

  app.post(
    '/v1/organization/model_api_keys/test',
    {
      config: { access: 'org', event: null },
      schema: {
        operationId: 'testModelApiKeys',
        summary: 'Test keys of model providers',
        description:
          'Asks each provider whether it accepts its key: the keys in the body, or the stored ones. Costs nothing at ' +
          'the provider, and changes nothing but `refused_at` of a stored key. At most 20 such tests a minute for an organization.',
        tags: ['organization'],
        body: TestModelKeys,
        response: { 200: ModelKeyTests },
      },
    },
    async (request, reply) => {
      await countKeyTest(request, reply)
      const { organizationId } = request.caller
      const given = request.body?.model_api_keys
      const keys = given ?? (await storedModelKeys(db, vault, organizationId))
      const results = await testModelKeys(baseUrls, keys, clientLeft(reply))
      const refused = given ? [] : results.filter(({ status }) => status === 'refused')
      for (const { provider } of refused) await recordKeyRefusal(db, organizationId, provider)
      return { results }
    },
  )

  app.delete(
    '/v1/organization',
    {
      config: { access: 'org', event: 'organization.delete' },
      schema: {
        operationId: 'deleteOrganization',
        summary: 'Delete the organization',
        description:
          'Deletes everything, for good: all keys stop working within a second, provider keys and other secrets are ' +
          'erased, every instance is terminated and its sandbox destroyed, and a paid subscription is cancelled. The ' +
          'body repeats the name of the organization.',
        tags: ['organization'],
        body: DeleteOrganization,
        response: { 204: Type.Null(), ...failures(400) },
      },
    },
    async ({ body, caller, log }, reply) => {
      const { terminated, keyHashes, secrets } = await deleteOrganization(db, caller.organizationId, body.name)
      keyHashes.forEach(forgetCaller)
      log.info(
        { organizationId: caller.organizationId, instances: terminated, keys: keyHashes.length, secrets },
        'organization deleted; its sandboxes are being destroyed',
      )
      if (terminated > 0) queue.enqueue()
      return reply.code(204).send(null)
    },
  )
}
