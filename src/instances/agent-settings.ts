import type { ApprovalMode, ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { checkOverrides } from '#openclaw/config/check-overrides.ts'
import { findSetApprovals, setsModel } from '#openclaw/config/overrides.ts'
import { modelFault } from '#openclaw/models/check-models.ts'

/** The settings of an agent that a caller may choose; null is Chowder's default. */
export interface AgentSettings {
  model: string | null
  instructions: string | null
  approvals: ApprovalMode
  /** The overrides as the caller sent them. */
  openclawConfig: Record<string, unknown> | null
}

/** The settings of an agent whose caller has chosen none. */
export const noSettings: AgentSettings = { model: null, instructions: null, approvals: 'auto', openclawConfig: null }

/**
 * Throws AppError for overrides that `checkOverrides` refuses, for an unknown model of the provider, and for a model,
 * instructions or approvals that the overrides set as well.
 */
export function checkSettings(
  { model, instructions, approvals, openclawConfig }: AgentSettings,
  release: string,
  provider: ModelProvider,
): void {
  const { tree, systemPrompt } = checkOverrides(release, provider, openclawConfig ?? {})
  if (model !== null) {
    if (model === 'openclaw') throw new AppError('invalid_value', texts.modelOfItself, { param: 'model' })
    const fault = modelFault(release, provider, model)
    if (fault) throw new AppError(fault.code, fault.message, { param: 'model' })
    if (setsModel(tree)) throw setTwice('model', 'agents.defaults.model')
  }
  const path = approvals === 'auto' ? null : findSetApprovals(tree)
  if (path) throw setTwice('approvals', path)
  if (instructions !== null && systemPrompt !== null) throw setTwice('instructions', 'agent.system_prompt')
}

const setTwice = (field: 'model' | 'instructions' | 'approvals', override: string) =>
  new AppError('invalid_openclaw_config', texts.setTwice(field, override), { param: field })
