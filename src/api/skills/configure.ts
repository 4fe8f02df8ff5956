import { changeConfig } from '#instances/gateway/change.ts'
import type { UnsealedInstance } from '#instances/gateway/configuration.ts'
import { AppError } from '#platform/errors.ts'
import { findSkill, type SkillWork } from './lookup.ts'
import { checkPatch, isUsableName, mergeSettings, type SettingsPatch, type SkillSettings } from './settings.ts'
import { patchSettings } from './store.ts'

/** The configuration with other settings for one skill; none when they are empty. */
export function withSettings(stored: UnsealedInstance, name: string, settings: SkillSettings): UnsealedInstance {
  const { [name]: _replaced, ...others } = stored.skills
  return { ...stored, skills: Object.keys(settings).length > 0 ? { ...others, [name]: settings } : others }
}

/**
 * Changes a skill's settings: on a running instance at the gateway first, on any other for its next start. Throws
 * not_found, invalid, and what `changeConfig` throws.
 */
export async function configureSkill(
  work: SkillWork,
  organizationId: string,
  id: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  checkPatch(patch)
  await findSkill(work, organizationId, id, name)
  if (!isUsableName(name)) throw new AppError('invalid', 'OpenClaw cannot keep settings under the name of this skill.')
  if (Object.keys(patch).length > 0) await changeSettings(work, organizationId, id, name, patch)
}

/** The same for a skill that is known to be there. */
export async function changeSettings(
  work: SkillWork,
  organizationId: string,
  id: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  await changeConfig(work, organizationId, id, {
    next: (stored) => withSettings(stored, name, mergeSettings(stored.skills[name] ?? {}, patch)),
    store: (tx, row) => patchSettings(tx, work.vault, row.id, name, patch),
    atRest: 'store',
  })
}
