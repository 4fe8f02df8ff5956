import type { ModelProvider } from '#database/schema.ts'
import { modelFault } from '#openclaw/check-models.ts'
import { checkOverrides } from '#openclaw/check-overrides.ts'
import { setsModel } from '#openclaw/overrides.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** What a caller sets of an agent; null is Chowder's default. */
export interface AgentSettings {
  model: string | null
  instructions: string | null
  /** The overrides as they were sent. */
  openclawConfig: Record<string, unknown> | null
}

/**
 * Throws AppError for what `checkOverrides` refuses, for a model that the provider does not have, and for a model or
 * instructions that the overrides set, too.
 */
export function checkSettings(
  { model, instructions, openclawConfig }: AgentSettings,
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
  if (instructions !== null && systemPrompt !== null) throw setTwice('instructions', 'agent.system_prompt')
}

const setTwice = (field: 'model' | 'instructions', override: string) =>
  new AppError('invalid_openclaw_config', texts.setTwice(field, override), { param: field })
