import type { ModelProvider } from '#database/schema.ts'
import { toGatewayModel } from '#openclaw/model.ts'
import { parseOverrides, setsModel } from '#openclaw/overrides.ts'
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
 * Throws AppError `invalid` for what `parseOverrides` refuses, for a model of another provider, and for a model or
 * instructions that the overrides set, too.
 */
export function checkSettings({ model, instructions, openclawConfig }: AgentSettings, provider: ModelProvider): void {
  const { tree, systemPrompt } = parseOverrides(openclawConfig ?? {})
  if (model !== null) {
    if (toGatewayModel(provider, model) === null)
      throw new AppError('model_of_itself', texts.modelOfItself, { param: 'model' })
    if (setsModel(tree)) throw setTwice('model', 'agents.defaults.model')
  }
  if (instructions !== null && systemPrompt !== null) throw setTwice('instructions', 'agent.system_prompt')
}

const setTwice = (field: 'model' | 'instructions', override: string) =>
  new AppError('set_twice', texts.setTwice(field, override), { param: field })
