import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { ModelProvider } from '#database/schema.ts'
import { releaseSource } from '#openclaw/releases.ts'
import { gatewayProviders } from './providers.ts'

/** A list price in US dollars for a million tokens; null means unknown. */
export interface Price {
  input: number
  output: number
  cache_read: number | null
  cache_write: number | null
  as_of: string
  source: string
}

interface Abilities {
  images: boolean
  context_window: number
  max_output_tokens: number
  thinking: boolean
  temperature: boolean
  top_p: boolean
  streams: boolean
}

/** The abilities of a model in OpenClaw, and its price. `docs/models.md` explains the fields. */
export interface Model extends Abilities {
  id: string
  name: string
  price: Price | null
}

/** A model that its vendor has shut down, and its successor. */
export interface RetiredModel {
  id: string
  retired_on: string | null
  successor: string
}

/** The models of a provider. */
export interface ModelTable {
  default: string
  /** Assumed for a model that no table lists. */
  unlisted: Abilities
  models: Model[]
  retired: RetiredModel[]
}

export type ModelTables = Record<ModelProvider, ModelTable>

/** The tables that a release ships. */
export const shippedTables = (release: string): ModelTables =>
  JSON.parse(readFileSync(join(releaseSource(release), 'models.json'), 'utf8'))

const tables = new Map<string, ModelTables>()

/** Replaces the tables of a release in this process. Call it before any table is read. */
export const useTables = (release: string, replacement: ModelTables): void => void tables.set(release, replacement)

function tablesOf(release: string): ModelTables {
  const known = tables.get(release)
  if (known) return known
  const shipped = shippedTables(release)
  tables.set(release, shipped)
  return shipped
}

/** The model of an instance whose creator selects none, without a provider prefix. */
export const defaultModel = (release: string, provider: ModelProvider): string => tablesOf(release)[provider].default

/** The models of a provider that are in the table. */
export const listedModels = (release: string, provider: ModelProvider): readonly Model[] =>
  tablesOf(release)[provider].models

export const retiredModels = (release: string, provider: ModelProvider): readonly RetiredModel[] =>
  tablesOf(release)[provider].retired

/** The date suffix of vendors' model names: `-20250929` or `-2024-08-06`. */
const date = /-(\d{8}|\d{4}-\d{2}-\d{2})$/

/**
 * A model by its name without a provider prefix. An unlisted one gets the abilities of its undated name, else the
 * assumed ones of its provider.
 */
export const findModel = (release: string, provider: ModelProvider, id: string): Model =>
  findIn(tablesOf(release)[provider], id)

function findIn({ models, unlisted }: ModelTable, id: string): Model {
  const known = models.find((model) => model.id === id) ?? models.find((model) => model.id === id.replace(date, ''))
  return known ? { ...known, id } : { id, name: id, ...unlisted, price: null }
}

/** The price of a model in an operator's file; null if the file has none, or the same as the release. */
export function ownPrice(release: string, provider: ModelProvider, id: string): Price | null {
  const { price } = findModel(release, provider, id)
  const shipped = findIn(shippedTables(release)[provider], id)
  return isDeepStrictEqual(price, shipped.price) ? null : price
}

export const isListed = (release: string, provider: ModelProvider, id: string): boolean =>
  listedModels(release, provider).some((model) => model.id === id)

/** The successor of a model that its vendor has shut down; undefined for all others. */
export const findRetired = (release: string, provider: ModelProvider, id: string): RetiredModel | undefined =>
  retiredModels(release, provider).find((model) => model.id === id)

/** The provider that lists a model, also a retired one; undefined if no table lists it. */
export const providerOf = (release: string, model: string): ModelProvider | undefined =>
  (Object.keys(gatewayProviders) as ModelProvider[]).find(
    (provider) => isListed(release, provider, model) || findRetired(release, provider, model) !== undefined,
  )
