import type { Static, TSchema } from '@sinclair/typebox'
import type { ShownBudget } from '#budgets/schemas.ts'
import type { Instance as Row } from '#database/schema.ts'
import type { AgentSettings } from '#instances/agent-settings.ts'
import type { EditableColumns } from '#instances/lease.ts'
import type { Vault } from '#platform/secrets.ts'
import type { InstanceStatus, View } from './status.ts'

/** The sources of an instance's answer. */
export interface Shown {
  row: Omit<Row, 'sealedToken'>
  settings: AgentSettings
  budgets: ShownBudget[]
  view: View
  status: Static<typeof InstanceStatus>
}

/** The instance that a value is written to. `row` is null for a new instance. */
export interface Target {
  id: string
  vault: Vault
  row: Row | null
}

export interface Field {
  /** The schema of the field in answers. */
  answer: TSchema
  /** The value in answers. */
  show(shown: Shown): unknown
  example: unknown
  /** The schema in the body of a create. Absent: the creator does not set the field. */
  create?: TSchema
  /** The schema in the body of a PATCH. Absent: the field never changes, or only Chowder changes it. */
  patch?: TSchema
  /** The value when a create omits the field; null by default. */
  initial?: unknown
  /** The columns for a valid value. Throws AppError for a value that is not allowed. */
  columns?(value: never, target: Target): Partial<EditableColumns>
  /** The name of the setting in `AgentSettings`, for a field of the gateway's configuration. */
  setting?: keyof AgentSettings
  /** A worker applies a changed value to the agent within seconds. */
  appliedLater?: true
  /** The reason why only an organization key may change the field. */
  needsOrganizationKey?: 'identity' | 'limit'
  /** Shown as null to a scoped key without the permission `configure`. */
  isPrivate?: true
  /** The value holds no text of the caller, so erasure keeps it. */
  isKept?: true
}

/** Checks that a row shows what its schema says. */
export const field = <Answer extends TSchema, Rest extends Omit<Field, 'answer' | 'show' | 'example'>>(
  row: { answer: Answer; show(shown: Shown): Static<Answer>; example: Static<Answer> } & Rest,
) => row

export const described = <S extends TSchema>(schema: S, addition: string): S => ({
  ...schema,
  description: `${schema.description ?? ''} ${addition}`.trimStart(),
})
