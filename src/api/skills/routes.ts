import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { linkNext, PageQuery, positionOf } from '#http/paging.ts'
import type { CountRequest } from '#http/rate-limit.ts'
import type { FindGateway } from '#instances/find.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import { getInstance } from '#instances/row.ts'
import { createClawHub } from '#openclaw/skills/clawhub.ts'
import { referenceText } from '#openclaw/skills/skill-reference.ts'
import { Nullable } from '#platform/typebox.ts'
import { configureSkill } from './configure.ts'
import { installSkill, updateSkill } from './install.ts'
import { getSkill, listSkills } from './list.ts'
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
import { uninstallSkill } from './uninstall.ts'

export interface SkillRouteDeps extends ChangeDeps {
  askGateway: AskGateway
  findGateway: FindGateway
  /** The address of the registry; undefined for OpenClaw's default. */
  clawhubUrl: string | undefined
  /** The address at which clients reach the API. */
  publicUrl(): string
}

interface RouteDeps extends SkillRouteDeps {
  countSkillSearch: CountRequest
}

const maxSearchResults = 50
const SkillParams = Type.Object({
  ...InstanceParams.properties,
  skill_name: Type.String({ description: 'The name of the skill, as the list has it.' }),
})

/** The skills of an agent: OpenClaw's own, those of the registry, and those in the workspace. */
export const skillRoutes: FastifyPluginAsyncTypebox<RouteDeps> = async (app, deps) => {
  const skillDeps = { ...deps, clawhub: createClawHub(deps.clawhubUrl) }
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
          'All skills of the instance, sorted by name: those of the registry, those that are part of OpenClaw, and ' +
          'those in the workspace. While the instance does not run, only the installed and the configured skills ' +
          'are known, and none is ready.',
        params: InstanceParams,
        querystring: Type.Object(
          {
            ...PageQuery.properties,
            eligible_only: Type.Boolean({ default: false, description: 'true lists only skills that are ready.' }),
          },
          { additionalProperties: false },
        ),
        response: { 200: Type.Array(SkillSummary), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params, query }, reply) => {
      const after = positionOf(query.cursor, () => true)
      const skills = await listSkills(skillDeps, caller.organizationId, params.instance_id)
      const rest = skills
        .map(toSummary)
        .filter(({ name, ready }) => (ready || !query.eligible_only) && (after === undefined || name > after))
      const page = rest.slice(0, query.limit)
      const last = page.at(-1)
      if (last && page.length < rest.length) linkNext(reply, deps.publicUrl(), last.name)
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
          'Skills of the registry, the best matches first. A skill that is called `search` cannot be read at its ' +
          'own path because of this one; it is in the list. At most 10 searches a minute for an organization.',
        params: InstanceParams,
        querystring: Type.Object(
          {
            q: Type.String({ minLength: 1, maxLength: 200, description: 'The words to search for.' }),
            limit: Type.Integer({
              minimum: 1,
              maximum: maxSearchResults,
              default: 20,
              description: 'The maximum number of skills.',
            }),
          },
          { additionalProperties: false },
        ),
        response: { 200: Type.Array(FoundSkill), ...failures(404, 502) },
      },
    },
    async (request, reply) => {
      const { caller, params, query } = request
      await getInstance(deps.db, caller.organizationId, params.instance_id)
      await deps.countSkillSearch(request, reply)
      const results = await skillDeps.clawhub.search(query.q, query.limit)
      return results.map(({ name, description, version, ...reference }) => ({
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
          'Installs a skill of the registry on a running instance and pins its version. A version that the ' +
          'registry’s scan or its moderators refused is never installed; a version that is not known to be clean ' +
          'needs `allow_unverified`. Variables may be set here or later.',
        params: InstanceParams,
        body: InstallSkill,
        response: { 200: InstalledSkill, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) => {
      const { slug, version, env = {}, allow_unverified: allowUnverified = false } = body
      const request = { slug, version, env, allowUnverified }
      return toInstalledSkill(await installSkill(skillDeps, caller.organizationId, params.instance_id, request), env)
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
        description:
          'The description, the source and the folder of a skill, and the variables and programs that it still needs.',
        params: SkillParams,
        response: { 200: Skill, ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params }) =>
      toSkill(await getSkill(skillDeps, caller.organizationId, params.instance_id, params.skill_name)),
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
          'Changes only the fields that are sent: `env` and `config` are merged key by key, null removes a key. ' +
          'Takes effect at once on a running instance, at the next start of any other.',
        params: SkillParams,
        body: ConfigureSkill,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ body, caller, params }, reply) => {
      await configureSkill(skillDeps, caller.organizationId, params.instance_id, params.skill_name, body)
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
          'Replaces an installed skill by another version, the latest by default, under the same rules as an ' +
          'install. Its settings stay; changes that the agent made to its files are lost.',
        params: SkillParams,
        body: Nullable(UpdateSkill),
        response: { 200: InstalledSkill, ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ body, caller, params }) => {
      const { version, allow_unverified: allowUnverified = false } = body ?? {}
      const { instance_id: id, skill_name: name } = params
      return toInstalledSkill(
        await updateSkill(skillDeps, caller.organizationId, id, name, { version, allowUnverified }),
      )
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
        description: 'Removes a skill of the registry, with its files and its settings, from a running instance.',
        params: SkillParams,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params }, reply) => {
      await uninstallSkill(skillDeps, caller.organizationId, params.instance_id, params.skill_name)
      return reply.code(204).send(null)
    },
  )
}
