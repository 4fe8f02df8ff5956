import type { ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { gatewayProviders } from './providers.ts'

/** The pattern of model names, which become a header. Route schemas use it, and answer 422. */
export const modelPattern = '^[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}$'

/**
 * The value of `x-openclaw-model` for the model that a caller requested; null for `openclaw`, the instance's default.
 * The model must match `modelPattern`. Throws AppError `invalid` when it names another provider.
 */
export function toGatewayModel(provider: ModelProvider, model: string): string | null {
  if (model === 'openclaw') return null
  const { id: gatewayProvider } = gatewayProviders[provider]
  const slash = model.indexOf('/')
  if (slash === -1) return `${gatewayProvider}/${model}`
  const prefix = model.slice(0, slash)
  const name = model.slice(slash + 1)
  if ((prefix !== provider && prefix !== gatewayProvider) || name === '') {
    throw new AppError(
      'model_not_found',
      `This instance uses ${provider}: model must be a model of that provider, such as ${provider}/<model>.`,
    )
  }
  return `${gatewayProvider}/${name}`
}
