import type { ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import type { ErrorCode } from '#errors/codes.ts'
import { modelPlaces, namesIn } from './agent-models.ts'
import { modelPattern } from './model.ts'
import { findRetired, listedModels, providerOf } from './models.ts'
import { bareModel, gatewayProviders } from './providers.ts'

const vendors = { anthropic: 'Anthropic', openai: 'OpenAI', gemini: 'Google' } as const satisfies Record<
  ModelProvider,
  string
>
const shownModels = 5

/** The reason why an instance cannot use a model. The message is one or two sentences for the caller. */
export interface ModelFault {
  code: ErrorCode
  message: string
}

/**
 * The reason why an instance of a provider cannot use a model; null if it can. `model` may have the provider's prefix.
 * Accepts a model that no table lists: vendors publish new ones.
 */
export function modelFault(release: string, provider: ModelProvider, model: string): ModelFault | null {
  if (!new RegExp(modelPattern).test(model)) {
    return { code: 'invalid_value', message: 'The name of a model has no spaces, and begins with a letter or a digit.' }
  }
  const prefix = model.includes('/') ? model.slice(0, model.indexOf('/')) : null
  const isForeignPrefix = prefix !== null && prefix !== provider && prefix !== gatewayProviders[provider].id
  const owner = prefix === null ? providerOf(release, model) : undefined
  if (isForeignPrefix || (owner !== undefined && owner !== provider)) {
    const known = listedModels(release, provider)
      .slice(0, shownModels)
      .map(({ id }) => id)
    const message =
      `This instance uses ${provider}: ${model} is no model of that provider. ` +
      `Use one such as ${known.join(', ')}. GET /v1/models lists them all.`
    return { code: 'model_not_found', message }
  }
  const retired = findRetired(release, provider, prefix === null ? model : bareModel(model))
  if (!retired) return null
  const day = retired.retired_on === null ? '' : ` on ${retired.retired_on}`
  return {
    code: 'model_not_found',
    message: `${vendors[provider]} shut down ${retired.id}${day}. Use ${retired.successor}.`,
  }
}

/** Throws AppError, with the code of the fault, for overrides that give an agent a model of another provider. */
export function checkAgentModels(release: string, provider: ModelProvider, tree: Record<string, unknown>): void {
  for (const { path, holder } of modelPlaces(tree)) {
    for (const name of namesIn(holder.model)) {
      const fault = modelFault(release, provider, name)
      if (fault === null) continue
      const { code, message } = fault
      throw new AppError(code, `openclaw_config: "${path}": ${message}`, { param: 'openclaw_config' })
    }
  }
}
