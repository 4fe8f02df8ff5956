import type { ModelProvider } from '#database/schema.ts'
import { isObject } from '#openclaw/json.ts'
import { bareModel, gatewayProviders } from './providers.ts'

/** The places in overrides that name the models of agents, with the names in each. */
export function* modelPlaces(
  tree: Record<string, unknown>,
): Generator<{ path: string; holder: Record<string, unknown> }> {
  const { agents } = tree
  if (!isObject(agents)) return
  if (isObject(agents.defaults)) yield { path: 'agents.defaults.model', holder: agents.defaults }
  if (!isObject(agents.entries)) return
  for (const [id, entry] of Object.entries(agents.entries)) {
    if (isObject(entry)) yield { path: `agents.entries.${id}.model`, holder: entry }
  }
}

/** All names in a value of `model`: a text, or an object with `primary` and `fallbacks`. */
export function namesIn(model: unknown): string[] {
  const names = isObject(model) ? [model.primary, ...(Array.isArray(model.fallbacks) ? model.fallbacks : [])] : [model]
  return names.filter((name) => typeof name === 'string')
}

/** The models of agents in overrides, without a provider prefix. */
export const agentModels = (tree: Record<string, unknown>): string[] =>
  [...modelPlaces(tree)].flatMap(({ holder }) => namesIn(holder.model)).map(bareModel)

/**
 * Overrides in which each model of an agent has OpenClaw's prefix: OpenClaw does not find a name without one. A name of
 * another provider stays unchanged.
 */
export function withModelPrefixes(provider: ModelProvider, tree: Record<string, unknown>): Record<string, unknown> {
  const prefixed = structuredClone(tree)
  const name = (model: unknown) => (typeof model === 'string' ? withPrefix(provider, model) : model)
  for (const { holder } of modelPlaces(prefixed)) {
    const { model } = holder
    if (typeof model === 'string') holder.model = name(model)
    if (!isObject(model)) continue
    if ('primary' in model) model.primary = name(model.primary)
    if (Array.isArray(model.fallbacks)) model.fallbacks = model.fallbacks.map(name)
  }
  return prefixed
}

function withPrefix(provider: ModelProvider, model: string): string {
  const { id } = gatewayProviders[provider]
  if (!model.includes('/')) return `${id}/${model}`
  return model.startsWith(`${provider}/`) ? `${id}/${bareModel(model)}` : model
}
