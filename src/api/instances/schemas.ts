import { type Static, type TSchema, Type } from '@sinclair/typebox'
import type { Field, Shown } from './field.ts'
import { fields } from './fields.ts'

type Fields = typeof fields
type Body = 'answer' | 'create' | 'patch'
type SchemasOf<B extends Body> = {
  [Name in keyof Fields as Fields[Name] extends Record<B, TSchema> ? Name : never]: Fields[Name] extends Record<
    B,
    infer Schema
  >
    ? Schema
    : never
}

const rows: [string, Field][] = Object.entries(fields)

/** The schemas of the fields that a body or the answer has. */
export function schemasOf<B extends Body>(body: B): SchemasOf<B> {
  return Object.fromEntries(rows.flatMap(([name, row]) => (row[body] ? [[name, row[body]]] : []))) as SchemasOf<B>
}

const answers = schemasOf('answer')

const exampleInstance = Object.fromEntries(rows.map(([name, { example }]) => [name, example])) as {
  [Name in keyof Fields]: Static<Fields[Name]['answer']>
}

export const Instance = Type.Object(answers, { $id: 'Instance', examples: [exampleInstance] })

/** The example in other statuses. */
export const stoppedInstance = { ...exampleInstance, status: 'stopped' as const }
export const startingInstance = { ...exampleInstance, status: 'provisioning' as const, step: 'startGateway' }
export const stoppingInstance = { ...stoppedInstance, step: 'stopSandbox' }
export const createdInstance = {
  ...{ ...exampleInstance, status: 'provisioning' as const, sandbox_id: null, gateway_url: null, limits: null },
  updated_at: exampleInstance.created_at,
}

/** Converts an instance to the API's format, with null for fields that the caller may not read. */
export const toInstance = (shown: Shown): Static<typeof Instance> =>
  Object.fromEntries(
    rows.map(([name, { show, isPrivate }]) => [name, isPrivate && !shown.view.mayConfigure ? null : show(shown)]),
  ) as Static<typeof Instance>
