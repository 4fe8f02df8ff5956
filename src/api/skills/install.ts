import type { Instance, Skill } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changeConfig } from '#instances/gateway/change.ts'
import { createInstanceMask } from '#instances/gateway/secrets.ts'
import { getInstance } from '#instances/row.ts'
import type { SkillRelease } from '#openclaw/skills/clawhub.ts'
import { installVersion, type Objection } from '#openclaw/skills/skill-install.ts'
import { referenceText, type SkillReference } from '#openclaw/skills/skill-reference.ts'
import { type GatewaySkill, readSkills, skillIn } from '#openclaw/skills/skills.ts'
import { useFiles } from '#sandbox/driver.ts'
import { changeSettings } from './configure.ts'
import type { SkillDeps } from './deps.ts'
import { getSkill } from './list.ts'
import { getInstallableRelease, type ReleaseRequest, requireReference, resolveSlug } from './registry.ts'
import { checkVariables, isUsableName, mergeSettings } from './settings.ts'
import { listStoredSkills, storeRelease } from './store.ts'

export interface Installation {
  skill: GatewaySkill
  version: string
  digest: string | null
  /** The installer's output. */
  output: string
}

/**
 * Installs a skill of the registry on a running instance and sets its variables. Throws not_found; conflict when the
 * instance does not run or has the skill; invalid, with the reason, when the skill may not be installed;
 * gateway_unreachable also for the registry; and the errors of `changeConfig`. If only the variables cannot be set, the
 * skill stays installed without them.
 */
export async function installSkill(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  request: ReleaseRequest & { slug: string; env: Record<string, string> },
): Promise<Installation> {
  const { slug, env } = request
  checkVariables(env)
  mergeSettings({}, { env }) // refuses settings that are too large before anything is installed
  await deps.findGateway(organizationId, instanceId) // wakes the agent
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const reference = await resolveSlug(deps.clawhub, slug)
  const release = await getInstallableRelease(deps.clawhub, reference, request)
  const installation = await install(deps, instance, { reference, release }, (reported, stored) => ({
    replace: canReplace(reference, skillIn(reported, reference), stored),
    objection: nameObjection(referenceText(reference), stored),
  }))
  if (Object.keys(env).length > 0) {
    await changeSettings(deps, organizationId, instanceId, installation.skill.key, { env })
  }
  return installation
}

/**
 * Replaces an installed skill by another version, the latest by default; its settings stay. Does nothing when that
 * version is installed; otherwise the agent's changes to the files of the skill are lost. Throws the errors of
 * `installSkill`.
 */
export async function updateSkill(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  name: string,
  request: ReleaseRequest,
): Promise<Installation> {
  await deps.findGateway(organizationId, instanceId) // wakes the agent
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const skill = await getSkill(deps, organizationId, instanceId, name)
  const reference = requireReference(skill)
  const release = await getInstallableRelease(deps.clawhub, reference, request)
  const { reported, stored } = skill
  const { version } = release
  if (stored?.version === version && reported?.installed?.version === version) {
    return { skill: reported, version, digest: stored.digest, output: texts.skillUpToDate(name, version) }
  }
  return install(deps, instance, { reference, release }, () => ({
    replace: true,
    objection: ({ key }) => (key === name ? null : `it calls itself ${JSON.stringify(key)} now.`),
  }))
}

/** Decides, with the current skills of the instance, how a release is installed. */
type Plan = (
  reported: readonly GatewaySkill[],
  stored: readonly Skill[],
) => {
  /** Whether the contents of the skill's folder are replaced. */
  replace: boolean
  objection: Objection
}

/**
 * Makes the gateway install a release, and then stores the release. A crash in between leaves the skill in the
 * workspace without a stored release; a second install checks it and stores it.
 */
async function install(
  deps: SkillDeps,
  instance: Instance,
  { reference, release }: { reference: SkillReference; release: SkillRelease },
  plan: Plan,
): Promise<Installation> {
  const { id, organizationId } = instance
  const { version } = release
  const slug = referenceText(reference)
  const { promise: installed, resolve } = Promise.withResolvers<Installation>()
  await changeConfig(deps, organizationId, id, {
    edit: (stored) => stored,
    async verify(gateway, signal) {
      const stored = await listStoredSkills(deps.db, organizationId, id)
      const { replace, objection } = plan(await readSkills(gateway), stored)
      const mask = await createInstanceMask(deps.db, deps.vault, instance)
      const asked = { reference, release, replace }
      const { skill, output } = await useFiles(deps.regions.of(instance).sandboxes, id, (files) =>
        installVersion(gateway, files, asked, objection, mask, signal),
      )
      resolve({ skill, output, version, digest: skill.installed?.digest ?? null })
    },
    async store(tx) {
      const { skill, digest } = await installed
      await storeRelease(tx, id, { name: skill.key, slug, version, digest })
    },
    whenNotRunning: 'refuse',
  })
  return installed
}

/**
 * Whether the contents of the skill's folder are to be replaced. Throws conflict when the folder holds another skill,
 * or when the skill is installed already.
 */
function canReplace(reference: SkillReference, inFolder: GatewaySkill | undefined, stored: readonly Skill[]): boolean {
  const slug = referenceText(reference)
  const row = stored.find((skill) => skill.slug === slug)
  if (!inFolder) return row !== undefined
  if (row) throw new AppError('skill_already_installed', texts.skillInstalled(row.name, row.version ?? ''))
  if (!inFolder.installed) throw new AppError('skill_folder_taken', texts.skillFolderTaken(reference.slug))
  const other = referenceText(inFolder.installed.reference)
  if (other !== slug) throw new AppError('skill_folder_taken', texts.otherSkillInstalled(other))
  return true // a crash left it without a stored release
}

const nameObjection =
  (slug: string, stored: readonly Skill[]): Objection =>
  ({ key }, reported) => {
    if (!isUsableName(key)) return 'the name that it gives itself cannot be used.'
    const isTaken =
      stored.some((row) => row.name === key && row.slug !== slug) ||
      reported.filter((skill) => skill.key === key).length > 1
    return isTaken ? `it takes the name of another skill, ${JSON.stringify(key)}.` : null
  }
