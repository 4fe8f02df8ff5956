import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '../database/client.ts'
import type { Tier } from '../database/schema.ts'
import type { Bell } from '../platform/bell.ts'
import { ErrorBody } from '../platform/http-errors.ts'
import type { Vault } from '../platform/secrets.ts'
import { Organization, PatchOrganization, Signup, toOrganization } from './schemas.ts'
import { getOrganization, patchOrganization, signUp } from './store.ts'

export interface OrganizationDeps {
  db: Db
  vault: Vault
  bell: Bell
  /** Tier of a new organization. */
  defaultTier: Tier
}

const failures = { '4xx': ErrorBody, '5xx': ErrorBody }

/** Sign up, read and change an organization and its model provider keys. */
export const organizationRoutes: FastifyPluginAsyncTypebox<OrganizationDeps> = async (app, deps) => {
  const { db, vault, bell, defaultTier } = deps

  app.post(
    '/v1/organization/signup',
    {
      config: { access: 'public' },
      schema: {
        tags: ['organization'],
        body: Signup,
        response: { 201: Type.Object({ organization: Organization, api_key: Type.String() }), ...failures },
      },
    },
    async ({ body }, reply) => {
      const { organization, key } = await signUp(db, body.name, defaultTier)
      return reply.code(201).send({ organization: toOrganization(organization, []), api_key: key })
    },
  )

  app.get(
    '/v1/organization',
    { config: { access: 'org' }, schema: { tags: ['organization'], response: { 200: Organization, ...failures } } },
    async ({ caller }) => {
      const { organization, providers } = await getOrganization(db, caller.organizationId)
      return toOrganization(organization, providers)
    },
  )

  app.patch(
    '/v1/organization',
    {
      config: { access: 'org' },
      schema: { tags: ['organization'], body: PatchOrganization, response: { 200: Organization, ...failures } },
    },
    async ({ body, caller }, reply) => {
      const { organization, providers, due } = await patchOrganization(db, vault, caller.organizationId, body)
      reply.raw.once('finish', () => due.forEach(bell.ring))
      return toOrganization(organization, providers)
    },
  )
}
