import { AppError } from '#errors/app-error.ts'
import { changeConfig } from '#instances/gateway/change.ts'
import type { UnsealedInstance } from '#instances/gateway/configuration.ts'
import type { SkillDeps } from './deps.ts'
import { getSkill } from './list.ts'
import { checkPatch, isUsableName, mergeSettings, type SettingsPatch, type SkillSettings } from './settings.ts'
import { patchStoredSettings } from './store.ts'

/** Replaces the settings of one skill in the configuration; empty settings are omitted. */
export function withSettings(stored: UnsealedInstance, name: string, settings: SkillSettings): UnsealedInstance {
  const { [name]: _replaced, ...others } = stored.skills
  return { ...stored, skills: Object.keys(settings).length > 0 ? { ...others, [name]: settings } : others }
}

/**
 * Changes the settings of a skill: at the gateway of a running instance first, at the next start of any other. Throws
 * not_found, invalid, and the errors of `changeConfig`.
 */
export async function configureSkill(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  checkPatch(patch)
  await getSkill(deps, organizationId, instanceId, name)
  if (!isUsableName(name))
    throw new AppError('invalid_value', 'OpenClaw cannot store settings under the name of this skill.')
  if (Object.keys(patch).length > 0) await changeSettings(deps, organizationId, instanceId, name, patch)
}

/** Configures a skill without a check that it exists. */
export async function changeSettings(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  await changeConfig(deps, organizationId, instanceId, {
    edit: (stored) => withSettings(stored, name, mergeSettings(stored.skills[name] ?? {}, patch)),
    store: (tx, { id }) => patchStoredSettings(tx, deps.vault, id, name, patch),
    whenNotRunning: 'store',
  })
}
