import type { Instance } from '#database/schema.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { getInstance, relabelInstance, sealConfig } from '#instances/row.ts'
import { parseOverrides } from '#openclaw/overrides.ts'

export interface Patch {
  name?: string
  metadata?: Record<string, string>
  openclaw_config?: Record<string, unknown> | null
}

/** Renames or relabels an instance and replaces its configuration overrides, all or nothing, as `changeConfig` does. */
export async function patchInstance(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  patch: Patch,
): Promise<Instance> {
  const { openclaw_config: openclawConfig, ...labels } = patch
  if (openclawConfig === undefined) {
    const row = await getInstance(deps.db, organizationId, id)
    return Object.keys(labels).length === 0 ? row : relabelInstance(deps.db, organizationId, id, labels)
  }
  if (openclawConfig) parseOverrides(openclawConfig) // refuses bad ones before anything changes
  return changeConfig(deps, organizationId, id, {
    edit: (stored) => ({ ...stored, openclawConfig }),
    columns: (row) => ({ ...labels, sealedConfig: sealConfig(deps.vault, row.id, openclawConfig) }),
    whenNotRunning: 'store',
  })
}
