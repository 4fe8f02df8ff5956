import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, PageQuery, positionOf } from '#http/paging.ts'
import { Nullable } from '#http/validation.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import { getInstance } from '#instances/row.ts'
import { clawHubAt, referenceText } from '#openclaw/clawhub.ts'
import { configureSkill } from './configure.ts'
import { installSkill, uninstallSkill, updateSkill } from './install.ts'
import { findSkill, listSkills } from './lookup.ts'
import {
  ConfigureSkill,
  FoundSkill,
  InstalledSkill,
  InstallSkill,
  Skill,
  SkillSummary,
  toInstalledSkill,
  toSkill,
  toSummary,
  UpdateSkill,
} from './schemas.ts'

export interface SkillDeps extends ChangeDeps {
  askGateway: AskGateway
  /** The registry of skills; undefined is OpenClaw's default. */
  clawhubUrl: string | undefined
  /** How clients reach the API. */
  publicUrl(): string
}

const maxFound = 50
const ByName = Type.Object({ ...InstanceParams.properties, skill_name: Type.String() })

/** What an agent can do beyond its model: skills of OpenClaw, and more from a registry. */
export const skillRoutes: FastifyPluginAsyncTypebox<SkillDeps> = async (app, deps) => {
  const work = { ...deps, clawhub: clawHubAt(deps.clawhubUrl) }
  const common = { tags: ['skills'] }
  const config = { access: 'configure' } as const

  app.get(
    '/v1/instances/:instance_id/skills',
    {
      config,
      schema: {
        ...common,
        operationId: 'listSkills',
        summary: 'List skills',
        description:
          'Every skill of the instance by name: those from the registry, those that OpenClaw brings along, and those in the workspace. While the instance does not run only the installed and the configured ones are known, and none is ready.',
        params: InstanceParams,
        querystring: Type.Object(
          {
            ...PageQuery.properties,
            eligible_only: Type.Boolean({ default: false, description: 'true lists only those that are ready.' }),
          },
          { additionalProperties: false },
        ),
        response: { 200: Type.Array(SkillSummary), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params, query }, reply) => {
      const after = positionOf(query.cursor, () => true)
      const known = await listSkills(work, caller.organizationId, params.instance_id)
      const left = known
        .map(toSummary)
        .filter(({ name, ready }) => (ready || !query.eligible_only) && (after === undefined || name > after))
      const page = left.slice(0, query.limit)
      const last = page.at(-1)
      if (last && page.length < left.length) linkNext(reply, deps.publicUrl(), last.name)
      return page
    },
  )

  app.get(
    '/v1/instances/:instance_id/skills/search',
    {
      config,
      schema: {
        ...common,
        operationId: 'searchSkills',
        summary: 'Search the registry for skills',
        description:
          'Skills that could be installed, the best matches first. Because of this path a skill that is itself called `search` is found in the list only.',
        params: InstanceParams,
        querystring: Type.Object(
          {
            q: Type.String({ minLength: 1, maxLength: 200, description: 'What to look for.' }),
            limit: Type.Integer({ minimum: 1, maximum: maxFound, default: 20 }),
          },
          { additionalProperties: false },
        ),
        response: { 200: Type.Array(FoundSkill), ...failures(404, 502) },
      },
    },
    async ({ caller, params, query }) => {
      await getInstance(deps.db, caller.organizationId, params.instance_id)
      const found = await work.clawhub.search(query.q, query.limit)
      return found.map(({ name, description, version, ...reference }) => ({
        slug: referenceText(reference),
        name,
        description,
        version,
      }))
    },
  )

  app.post(
    '/v1/instances/:instance_id/skills/install',
    {
      config: { ...config, event: 'skill.install' },
      schema: {
        ...common,
        operationId: 'installSkill',
        summary: 'Install a skill',
        description:
          'Installs a skill of the registry on a running instance and pins its version. What the registry’s scan or its moderators refused is never installed; what is not known to be clean needs `allow_unverified`. Variables may be given here or later.',
        params: InstanceParams,
        body: InstallSkill,
        response: { 200: InstalledSkill, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) => {
      const { slug, version, env = {}, allow_unverified: allowUnverified = false } = body
      const wanted = { slug, version, env, allowUnverified }
      return toInstalledSkill(await installSkill(work, caller.organizationId, params.instance_id, wanted), env)
    },
  )

  app.get(
    '/v1/instances/:instance_id/skills/:skill_name',
    {
      config,
      schema: {
        ...common,
        operationId: 'getSkill',
        summary: 'Read a skill',
        description: 'What a skill is, where it is, and what it still needs to be ready.',
        params: ByName,
        response: { 200: Skill, ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params }) =>
      toSkill(await findSkill(work, caller.organizationId, params.instance_id, params.skill_name)),
  )

  app.patch(
    '/v1/instances/:instance_id/skills/:skill_name',
    {
      config: { ...config, event: 'skill.configure' },
      schema: {
        ...common,
        operationId: 'configureSkill',
        summary: 'Configure a skill',
        description:
          'Changes only what is sent: `env` and `config` are merged key by key, null removes. Takes effect at once on a running instance, at the next start on any other.',
        params: ByName,
        body: ConfigureSkill,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ body, caller, params }, reply) => {
      await configureSkill(work, caller.organizationId, params.instance_id, params.skill_name, body)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/instances/:instance_id/skills/:skill_name/update',
    {
      config: { ...config, event: 'skill.update' },
      schema: {
        ...common,
        operationId: 'updateSkill',
        summary: 'Update a skill',
        description:
          'Puts another version of an installed skill, by default the latest, in its place, under the rules of an install. Its settings stay; changes that the agent made to its files are lost.',
        params: ByName,
        body: Nullable(UpdateSkill),
        response: { 200: InstalledSkill, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) => {
      const { version, allow_unverified: allowUnverified = false } = body ?? {}
      const { instance_id: id, skill_name: name } = params
      return toInstalledSkill(await updateSkill(work, caller.organizationId, id, name, { version, allowUnverified }))
    },
  )

  app.delete(
    '/v1/instances/:instance_id/skills/:skill_name',
    {
      config: { ...config, event: 'skill.uninstall' },
      schema: {
        ...common,
        operationId: 'uninstallSkill',
        summary: 'Uninstall a skill',
        description:
          'Removes a skill that came from the registry, its files and its settings, from a running instance.',
        params: ByName,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params }, reply) => {
      await uninstallSkill(work, caller.organizationId, params.instance_id, params.skill_name)
      return reply.code(204).send(null)
    },
  )
}
