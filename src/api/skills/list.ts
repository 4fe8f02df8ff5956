import type { Skill } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { unsealSkill } from '#instances/gateway/configuration.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus, requireRunning } from '#instances/status.ts'
import { type GatewaySkill, readSkills } from '#openclaw/skills/skills.ts'
import type { SkillDeps } from './deps.ts'
import { listStoredSkills } from './store.ts'

/** A skill of an instance: reported by its gateway, stored in the database, or both. */
export interface InstanceSkill {
  name: string
  /** null while the instance does not run, and for a skill that the gateway does not find. */
  reported: GatewaySkill | null
  /** null for a skill that Chowder neither installed nor configured. */
  stored: Skill | null
  enabled: boolean
  /** The names of the variables in the shell of a separate room. */
  shellEnv: string[]
}

/**
 * The skills of an instance, sorted by name: all skills that the gateway of a running one reports, otherwise the stored
 * ones. Throws not_found, conflict for a terminated instance, gateway_unreachable, gateway_timeout.
 */
export async function listSkills(
  { db, vault, askGateway }: SkillDeps,
  organizationId: string,
  instanceId: string,
): Promise<InstanceSkill[]> {
  const status = publicStatus(await getInstance(db, organizationId, instanceId))
  if (status === 'terminated') throw new AppError('instance_not_running', texts.notRunning(status))
  const skills = new Map<string, InstanceSkill>()
  for (const stored of await listStoredSkills(db, organizationId, instanceId)) {
    const { enabled, shell_env: shellEnv = [] } = unsealSkill(vault, stored)
    skills.set(stored.name, { name: stored.name, reported: null, stored, enabled: enabled !== false, shellEnv })
  }
  const reportedSkills = status === 'running' ? await askGateway(organizationId, instanceId, readSkills) : []
  for (const reported of reportedSkills) {
    const { key: name, enabled } = reported
    const known = skills.get(name)
    if (known?.reported) continue
    skills.set(name, { name, reported, stored: known?.stored ?? null, enabled, shellEnv: known?.shellEnv ?? [] })
  }
  return [...skills.values()].sort((one, other) => (one.name < other.name ? -1 : 1))
}

/**
 * Throws the errors of `listSkills`; not_found for an unknown skill, and conflict when only a running gateway could
 * know it.
 */
export async function getSkill(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  name: string,
): Promise<InstanceSkill> {
  const skills = await listSkills(deps, organizationId, instanceId)
  const skill = skills.find((other) => other.name === name)
  if (skill) return skill
  requireRunning(await getInstance(deps.db, organizationId, instanceId))
  throw new AppError('not_found', texts.skillNotFound)
}
