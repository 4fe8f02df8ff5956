import type { RunningGateway, RunningGateways } from '#instances/find.ts'
import { isListed } from '#openclaw/models/models.ts'
import { bareModel } from '#openclaw/models/providers.ts'
import { type ChangeDeps, changeConfig } from './change.ts'

/** More than an agent uses at a time. The limit keeps the configuration small. */
const maxModels = 20

/**
 * Declares a model that no table lists to an instance's gateway, before the first turn that uses it: without a restart,
 * in about half a second. Otherwise OpenClaw would show it no images and cut its answers. The instance keeps the latest
 * 20 such models, also over restarts. Changes nothing for a known model. Throws the errors of `changeConfig`.
 */
export type DeclareModel = (gateway: RunningGateway, instanceId: string, model: string) => Promise<void>

export const createDeclareModel =
  (deps: ChangeDeps, forgetGateway: RunningGateways['forget']): DeclareModel =>
  async ({ organizationId, release, provider, model: ownModel, unlistedModels }, instanceId, model) => {
    const id = bareModel(model)
    if (model === 'openclaw' || id === ownModel) return
    if (isListed(release, provider, id) || unlistedModels.includes(id)) return
    const withModel = (ids: readonly string[]) => [...ids.filter((other) => other !== id), id].slice(-maxModels)
    await changeConfig(deps, organizationId, instanceId, {
      edit: (stored) => ({ ...stored, unlistedModels: withModel(stored.unlistedModels) }),
      columns: (row) => ({ unlistedModels: withModel(row.unlistedModels) }),
      whenNotRunning: 'refuse',
    })
    forgetGateway(organizationId, instanceId)
  }
