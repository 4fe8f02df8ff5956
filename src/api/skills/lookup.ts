import type { Skill } from '#database/schema.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { ChangeDeps } from '#instances/gateway/change.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import type { ClawHub } from '#openclaw/clawhub.ts'
import { type GatewaySkill, readSkills } from '#openclaw/skills.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { listRecorded, unsealSettings } from './store.ts'

export interface SkillWork extends ChangeDeps {
  askGateway: AskGateway
  clawhub: ClawHub
}

/** A skill, and what is known of it: at least one of the two. */
export interface KnownSkill {
  name: string
  /** null while the instance does not run, or when the gateway does not find it. */
  seen: GatewaySkill | null
  /** null when Chowder neither installed nor configured it. */
  recorded: Skill | null
  enabled: boolean
}

/**
 * Every skill of an instance by name: of a running one all that the gateway finds, of any other those that were recorded.
 * Throws not_found, conflict for a terminated one, gateway_unreachable, gateway_timeout.
 */
export async function listSkills(
  { db, vault, askGateway }: SkillWork,
  organizationId: string,
  id: string,
): Promise<KnownSkill[]> {
  const row = await getInstance(db, organizationId, id)
  const status = publicStatus(row)
  if (status === 'terminated') throw new AppError('conflict', texts.notRunning(status))
  const known = new Map<string, KnownSkill>()
  for (const recorded of await listRecorded(db, row.id)) {
    const enabled = unsealSettings(vault, recorded).enabled !== false
    known.set(recorded.name, { name: recorded.name, seen: null, recorded, enabled })
  }
  for (const skill of status === 'running' ? await askGateway(organizationId, id, readSkills) : []) {
    const { recorded = null, seen } = known.get(skill.key) ?? {}
    if (!seen) known.set(skill.key, { name: skill.key, seen: skill, recorded, enabled: skill.enabled })
  }
  return [...known.values()].sort((one, other) => (one.name < other.name ? -1 : 1))
}

/** Throws what `listSkills` throws, and not_found when there is no skill of that name. */
export async function findSkill(
  work: SkillWork,
  organizationId: string,
  id: string,
  name: string,
): Promise<KnownSkill> {
  const found = (await listSkills(work, organizationId, id)).find((skill) => skill.name === name)
  if (!found) throw new AppError('not_found', texts.skillNotFound)
  return found
}

/** The id of a running instance as it is stored. Throws not_found, and conflict early: the change itself looks again. */
export async function requireRunning({ db }: SkillWork, organizationId: string, id: string): Promise<string> {
  const row = await getInstance(db, organizationId, id)
  const status = publicStatus(row)
  if (status !== 'running') throw new AppError('conflict', texts.notRunning(status))
  return row.id
}
