import type { Instance as Row } from '#database/schema.ts'
import type { AgentSettings } from '#instances/agent-settings.ts'
import type { NewInstance } from '#instances/insert.ts'
import type { EditableColumns } from '#instances/lease.ts'
import type { Field, Target } from './field.ts'
import { fields } from './fields.ts'

const rows: [string, Field][] = Object.entries(fields)

/** The columns that the creator of an instance sets. */
type CallersColumns = Pick<NewInstance['columns'], 'modelProvider'> & Partial<NewInstance['columns']>

type Sent = Readonly<Record<string, unknown>>

const has = (sent: Sent, name: string) => sent[name] !== undefined

/** The columns of a new row, including those of omitted fields. */
export const newColumns = (sent: Sent, target: Omit<Target, 'row'>): CallersColumns =>
  Object.assign(
    {},
    ...rows.map(([name, { create, columns, initial = null }]) =>
      create ? columns?.((sent[name] ?? initial) as never, { ...target, row: null }) : undefined,
    ),
  )

/** The columns that a PATCH changes. */
export const changedColumns = (sent: Sent, target: Target & { row: Row }): Partial<EditableColumns> =>
  Object.assign(
    {},
    ...rows.map(([name, { patch, columns }]) =>
      patch && has(sent, name) ? columns?.(sent[name] as never, target) : undefined,
    ),
  )

/** The given settings of the agent. */
export const settingsOf = (sent: Sent): Partial<AgentSettings> =>
  Object.fromEntries(rows.flatMap(([name, { setting }]) => (setting && has(sent, name) ? [[setting, sent[name]]] : [])))

/** Whether a PATCH has a field that a worker applies to the agent after the answer. */
export const isAppliedLater = (sent: Sent): boolean =>
  rows.some(([name, { appliedLater }]) => appliedLater === true && has(sent, name))

/** The given fields that only an organization key may change, with the reason. */
export const fieldsOfOrganization = (sent: Sent) =>
  rows.flatMap(([param, { needsOrganizationKey: reason }]) => (reason && has(sent, param) ? [{ param, reason }] : []))
