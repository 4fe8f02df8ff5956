import type { Static, TSchema } from '@sinclair/typebox'

type Schema = Record<string, unknown>

/** Several examples of a body or an answer, by their names in the document. The simplest comes first. */
export const namedExamples = (byName: Record<string, unknown>) => ({
  examples: Object.values(byName),
  'x-examples': byName,
})

/** The schema of an answer with a different example. */
export const shownAs = <S extends TSchema>(schema: S, example: Static<S>): S => ({
  ...schema,
  'x-examples': { example },
})

/** The examples of a schema as the document shows them. A list shows the first of its items. */
export function examplesBeside({ 'x-examples': byName, examples, items }: Schema): Schema {
  const named = Object.entries(byName ?? {})
  if (named.length > 1) return { examples: Object.fromEntries(named.map(([name, value]) => [name, { value }])) }
  const [own] = named.map(([, value]) => value).concat(examples ?? [])
  const [item] = ((items as Schema | undefined)?.examples ?? []) as unknown[]
  if (own === undefined && item === undefined) return {}
  return { example: own ?? [item] }
}
