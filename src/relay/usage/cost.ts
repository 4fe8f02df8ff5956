import { calcPrice, extractUsage, findProvider, type Provider, type Usage } from '@pydantic/genai-prices'
import { LRUCache } from 'lru-cache'
import type { ModelProvider } from '#database/schema.ts'
import { findModel, ownPrice, type Price } from '#openclaw/models/models.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import type { ReportedUsage } from './read-usage.ts'

/** The tokens of a call. Those of the cache are part of the input, and those of reasoning part of the output. */
export interface CountedUsage {
  inputTokens: number
  cacheReadTokens: number
  cacheWriteTokens: number
  outputTokens: number
  reasoningTokens: number
  /** An estimate in US dollars, by list prices; null when the model has no known price. */
  cost: number | null
}

/** The estimated use of a call beyond the usage reported by its vendor. */
export interface CallAmount {
  tokens: number
  /** US dollars; null without a known price. */
  cost: number | null
}

const priceProviders = { anthropic: 'anthropic', openai: 'openai', gemini: 'google' } as const
const maxModels = 1000
const maxModelLength = 256
/** More tokens than any model accepts: a larger number is no count of tokens. */
const maxTokens = 1_000_000_000

/** The names in genai-prices for the formats of OpenAI's usage. */
function flavorOf(provider: ModelProvider, path: string): string {
  if (provider !== 'openai') return 'default'
  if (path.startsWith('/v1/images/')) return 'images'
  if (path === '/v1/embeddings') return 'embeddings'
  return path === '/v1/chat/completions' || path === '/v1/completions' ? 'chat' : 'responses'
}

/** The catalogue with one model and its price, in the form of genai-prices. */
function catalogueOf(model: string, { input, output, cache_read, cache_write }: Price): Provider {
  const prices = {
    input_mtok: input,
    output_mtok: output,
    ...(cache_read !== null && { cache_read_mtok: cache_read }),
    ...(cache_write !== null && { cache_write_mtok: cache_write }),
  }
  return { id: 'own', name: 'own', api_pattern: '', models: [{ id: model, match: { equals: model }, prices }] }
}

const catalogues = new LRUCache<string, { provider: Provider | null }>({ max: maxModels })

/**
 * The catalogue with only this model: finding a model in the whole one takes too long for a call of the relay. The
 * operator's own price wins, then that of genai-prices, then that of the release's models.
 */
function findPrices(provider: ModelProvider, model: string): Provider | null {
  const key = `${provider} ${model}`
  const known = catalogues.get(key)
  if (known) return known.provider
  const found = lookUpPrices(provider, model)
  catalogues.set(key, { provider: found })
  return found
}

function lookUpPrices(provider: ModelProvider, model: string): Provider | null {
  const own = ownPrice(defaultRelease, provider, model)
  if (own) return catalogueOf(model, own)
  const listed = priceOf({ input_tokens: 1 }, model, { providerId: priceProviders[provider] })
  if (listed) return { ...listed.provider, models: [listed.model] }
  const { price } = findModel(defaultRelease, provider, model)
  return price && catalogueOf(model, price)
}

/** Null for a model without a price, or a usage that its price cannot count. */
function priceOf(usage: Usage, model: string, options: Parameters<typeof calcPrice>[2]) {
  try {
    return calcPrice(usage, model, options)
  } catch {
    return null
  }
}

/**
 * An estimated cost of tokens in US dollars, without any cache; null for an unknown model, or one without a known
 * price.
 */
export function estimateCost(
  provider: ModelProvider,
  model: string | null,
  inputTokens: number,
  outputTokens: number,
): number | null {
  const asked = model?.slice(0, maxModelLength)
  const prices = asked ? findPrices(provider, asked) : null
  if (!asked || !prices) return null
  const usage = { input_tokens: inputTokens, output_tokens: outputTokens }
  return priceOf(usage, asked, { provider: prices })?.total_price ?? null
}

const isCount = (value: unknown): value is number =>
  typeof value === 'number' && Number.isFinite(value) && value >= 0 && value <= maxTokens

/**
 * Counts the tokens reported for a call of a path, and estimates their cost; null if none were reported, or they are
 * implausible. `model` is used when the answer names none.
 */
export function countUsage(
  provider: ModelProvider,
  path: string,
  reported: ReportedUsage,
  model: string | null,
): CountedUsage | null {
  const catalogue = findProvider({ providerId: priceProviders[provider] })
  if (!reported.usage || !catalogue) return null
  const priced = (reported.model ?? model ?? 'unknown').slice(0, maxModelLength)
  const [modelField, usageField] = provider === 'gemini' ? ['modelVersion', 'usageMetadata'] : ['model', 'usage']
  let usage: Usage
  try {
    ;({ usage } = extractUsage(
      catalogue,
      { [modelField]: priced, [usageField]: reported.usage },
      flavorOf(provider, path),
    ))
  } catch {
    return null
  }
  const { input_tokens: inputTokens = 0, output_tokens: outputTokens = 0 } = usage
  if (!(isCount(inputTokens) && isCount(outputTokens))) return null
  const prices = findPrices(provider, priced)
  const part = (count: number | undefined, whole: number) => (isCount(count) ? Math.min(count, whole) : 0)
  return {
    inputTokens,
    cacheReadTokens: part(usage.cache_read_tokens, inputTokens),
    cacheWriteTokens: part(usage.cache_write_tokens, inputTokens),
    outputTokens,
    reasoningTokens: part(usage.output_reasoning_tokens, outputTokens),
    cost: prices ? (priceOf(usage, priced, { provider: prices })?.total_price ?? null) : null,
  }
}
