import { readFileSync } from 'node:fs'
import { Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { type ModelProvider, modelProviders } from '#database/schema.ts'
import { StartupError } from '#errors/startup-error.ts'
import { isObject } from '#openclaw/json.ts'
import { modelPattern } from './model.ts'
import { type ModelTable, type ModelTables, shippedTables, useTables } from './models.ts'

const closed = { additionalProperties: false }
const orNull = <T extends ReturnType<typeof Type.Number | typeof Type.String>>(schema: T) =>
  Type.Union([schema, Type.Null()])
const Id = Type.String({ pattern: modelPattern })
const Tokens = Type.Integer({ minimum: 1, maximum: 100_000_000 })
const Dollars = Type.Number({ minimum: 0 })
const Day = Type.String({ pattern: '^\\d{4}-\\d{2}-\\d{2}$' })

const Price = Type.Object(
  {
    input: Dollars,
    output: Dollars,
    cache_read: orNull(Dollars),
    cache_write: orNull(Dollars),
    as_of: Day,
    source: Type.String({ minLength: 1 }),
  },
  closed,
)
const abilities = {
  images: Type.Boolean(),
  context_window: Tokens,
  max_output_tokens: Tokens,
  thinking: Type.Boolean(),
  temperature: Type.Boolean(),
  top_p: Type.Boolean(),
  streams: Type.Boolean(),
}
const Listed = Type.Object(
  { id: Id, name: Type.String({ minLength: 1 }), ...abilities, price: Type.Union([Price, Type.Null()]) },
  closed,
)
const Retired = Type.Object({ id: Id, retired_on: orNull(Day), successor: Id }, closed)
const Table = Type.Object(
  {
    default: Id,
    unlisted: Type.Object(abilities, closed),
    models: Type.Array(Listed),
    retired: Type.Array(Retired),
  },
  closed,
)

/** Throws an Error that names the wrong part. */
const withAdditions = (shipped: ModelTables, additions: Record<string, unknown>): ModelTables => ({
  anthropic: mergeTable(shipped.anthropic, 'anthropic', additions.anthropic ?? {}),
  openai: mergeTable(shipped.openai, 'openai', additions.openai ?? {}),
  gemini: mergeTable(shipped.gemini, 'gemini', additions.gemini ?? {}),
})

function mergeTable(shipped: ModelTable, provider: ModelProvider, added: unknown): ModelTable {
  if (!isObject(added)) throw new Error(`${provider} must be an object.`)
  const { models = [], retired = [], unlisted, ...rest } = added
  for (const [key, list] of Object.entries({ models, retired })) {
    if (!(Array.isArray(list) && list.every((entry) => isObject(entry) && typeof entry.id === 'string'))) {
      throw new Error(`${provider}.${key} must be a list of objects, each with the id of a model.`)
    }
  }
  const table = { ...shipped, ...rest, unlisted: { ...shipped.unlisted, ...(unlisted ?? {}) } }
  const merge = <Entry extends { id: string }>(old: Entry[], entries: unknown, blank: object): Entry[] => {
    const byId = new Map(old.map((entry) => [entry.id, entry]))
    for (const entry of entries as Entry[]) {
      byId.set(entry.id, { ...blank, ...byId.get(entry.id), ...entry })
    }
    return [...byId.values()]
  }
  const isRetired = (id: string) => table.retired.some((entry) => entry.id === id)
  table.retired = merge(shipped.retired, retired, { retired_on: null })
  table.models = merge(shipped.models, models, { ...table.unlisted, price: null })
    .map((entry) => ({ ...entry, name: entry.name ?? entry.id }))
    .filter(({ id }) => !isRetired(id))
  const [fault] = Value.Errors(Table, table)
  if (fault) throw new Error(`${placeOf(provider, table, fault.path)}: ${fault.message}.`)
  if (!table.models.some(({ id }) => id === table.default)) {
    throw new Error(`${provider}.default: ${table.default} is not in ${provider}.models.`)
  }
  return table
}

/** Names an entry by its id: the index in the merged table means nothing to the operator. */
function placeOf(provider: string, table: object, path: string): string {
  const [key = '', index, ...rest] = path.split('/').slice(1)
  const list = (table as Record<string, unknown>)[key]
  const entry = Array.isArray(list) ? list[Number(index)]?.id : index
  return [provider, key, entry, ...rest].filter((part) => part !== undefined).join('.')
}

/**
 * Adds an operator's file to the tables of all releases, for this process. Call it once, before any table is read.
 * Throws StartupError that names the wrong part of the file.
 */
export function addModelsFile(path: string, releases: readonly string[]): void {
  const refuse = (reason: string) => new StartupError(`CHOWDER_MODELS_FILE names ${path}: ${reason}`)
  let content: unknown
  try {
    content = JSON.parse(readFileSync(path, 'utf8'))
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    throw refuse(code ? `it cannot be read: ${code}` : `it is not valid JSON: ${(error as Error).message}`)
  }
  if (!isObject(content)) throw refuse('it must hold an object, with the name of a provider for each key.')
  const unknown = Object.keys(content).find((key) => !modelProviders.some((provider) => provider === key))
  if (unknown !== undefined) {
    throw refuse(`${JSON.stringify(unknown)} is no provider: use ${modelProviders.join(', ')}.`)
  }
  try {
    const merged = releases.map((release) => [release, withAdditions(shippedTables(release), content)] as const)
    for (const [release, tables] of merged) useTables(release, tables)
  } catch (error) {
    throw refuse((error as Error).message)
  }
}
