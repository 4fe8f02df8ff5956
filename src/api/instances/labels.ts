import { type Static, Type } from '@sinclair/typebox'
import { sql } from 'drizzle-orm'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { EditableColumns } from '#instances/lease.ts'
import { plainText } from '#platform/typebox.ts'

const maxLabels = 16

const labels = {
  type: 'object',
  maxProperties: maxLabels,
  propertyNames: { minLength: 1, maxLength: 64, ...plainText },
} as const
const label = { type: 'string', maxLength: 512, ...plainText } as const
export const Metadata = Type.Unsafe<Record<string, string>>({
  ...labels,
  additionalProperties: label,
  description:
    'Your own labels: at most 16 keys of 1 to 64 characters, with values of at most 512 characters. Chowder does not ' +
    'interpret them.',
})
export const MetadataChanges = Type.Unsafe<Record<string, string | null>>({
  ...labels,
  additionalProperties: { ...label, type: ['string', 'null'] },
  description:
    'Your own labels. Sets the keys that are sent, removes those that are null, and keeps the others; null ' +
    'removes all. At most 16 remain.',
})

/**
 * The labels of an instance after a change. SQL merges those of a stored instance, so that concurrent changes of
 * different labels do not undo each other. Throws AppError `invalid_value`.
 */
export function mergeLabels(
  changes: Static<typeof MetadataChanges> | null,
  row: Instance | null,
): EditableColumns['metadata'] {
  if (changes === null) return {}
  const merged = Object.entries({ ...row?.metadata, ...changes }).filter(
    (entry): entry is [string, string] => entry[1] !== null,
  )
  if (merged.length > maxLabels)
    throw new AppError('invalid_value', texts.tooManyLabels(merged.length, maxLabels), { param: 'metadata' })
  if (row === null) return Object.fromEntries(merged)
  return sql`jsonb_strip_nulls(${instances.metadata} || ${JSON.stringify(changes)}::jsonb)`
}
