import { changeConfig } from '#instances/gateway/change.ts'
import { getInstance } from '#instances/row.ts'
import { removeSkill } from '#openclaw/skills/skill-install.ts'
import { useFiles } from '#sandbox/driver.ts'
import { withSettings } from './configure.ts'
import type { SkillDeps } from './deps.ts'
import { getSkill } from './list.ts'
import { requireReference } from './registry.ts'
import { deleteStoredSkill } from './store.ts'

/**
 * Removes an installed skill from a running instance, its settings first. A crash half-way leaves the stored skill, and
 * a second call finishes. Throws not_found, conflict when the instance does not run, invalid when the skill did not
 * come from the registry, and the errors of `changeConfig`.
 */
export async function uninstallSkill(
  deps: SkillDeps,
  organizationId: string,
  instanceId: string,
  name: string,
): Promise<void> {
  await deps.findGateway(organizationId, instanceId) // wakes the agent
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const reference = requireReference(await getSkill(deps, organizationId, instanceId, name))
  await changeConfig(deps, organizationId, instanceId, {
    edit: (stored) => withSettings(stored, name, {}),
    verify: (gateway, signal) =>
      useFiles(deps.regions.of(instance).sandboxes, instance.id, (files) =>
        removeSkill(gateway, files, reference, signal),
      ),
    store: (tx, { id }) => deleteStoredSkill(tx, id, name),
    whenNotRunning: 'refuse',
  })
}
