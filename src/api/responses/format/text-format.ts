import { type Static, Type } from '@sinclair/typebox'
import type { RunningGateway } from '#instances/find.ts'
import { isLongerThan } from '#platform/json/length.ts'
import { textRule } from '#platform/typebox.ts'
import type { OutputFormat } from '#turns/output/format.ts'
import { schemaFault } from '#turns/output/validation.ts'
import { OptionalOrNull } from './input-schema.ts'
import { invalidField } from './invalid-field.ts'

/** Every state of a stream and the agent's system prompt contain the schema. */
const maxSchemaCharacters = 100_000

/** The fields of a format with a schema, in requests of both kinds. */
export const schemaFields = {
  name: OptionalOrNull(
    Type.String({
      minLength: 1,
      maxLength: 64,
      ...textRule('^[a-zA-Z0-9_-]+$', 'must have only letters, digits, _ and -'),
      description: 'The name of the value, for the agent: at most 64 letters, digits, _ and -.',
    }),
  ),
  description: OptionalOrNull(Type.String({ maxLength: 2000, description: 'What the value is for, for the agent.' })),
  schema: OptionalOrNull(
    Type.Record(Type.String(), Type.Unknown(), {
      description:
        'A JSON Schema of 2020-12 or draft-07, up to 100,000 characters. `format` and unknown keywords are not checked.',
    }),
  ),
  strict: OptionalOrNull(Type.Boolean({ description: 'No effect: every answer is checked.' })),
}

export const TextFormatParam = Type.Object(
  {
    type: Type.String({ description: '`text`, `json_object`, or `json_schema` with `name` and `schema`.' }),
    ...schemaFields,
  },
  { description: 'The format of the text. JSON comes whole, once it is checked.' },
)

/** Reads the field `text.format`. Throws AppError invalid that names the wrong field. */
export function readFormat(format: Static<typeof TextFormatParam> | null | undefined): OutputFormat {
  const type = format?.type ?? 'text'
  if (type === 'text' || type === 'json_object') return { type }
  if (type !== 'json_schema') {
    throw invalidField('text.format.type', 'must be text, json_object or json_schema.', 'unsupported_value')
  }
  const { name, schema, description = null, strict = null } = format ?? {}
  if (name == null) throw invalidField('text.format.name', 'is missing.')
  if (schema == null) throw invalidField('text.format.schema', 'is missing.')
  // The length without punctuation, which costs nothing to count, bounds the work of writing the rest.
  if (isLongerThan(schema, maxSchemaCharacters) || JSON.stringify(schema).length > maxSchemaCharacters) {
    throw invalidField(
      'text.format.schema',
      `must not have more than ${maxSchemaCharacters.toLocaleString('en')} characters.`,
    )
  }
  return { type, name, schema, description, strict }
}

/**
 * Checks the schema of a format. Throws AppError invalid when it is not a valid JSON Schema, refers to another one, or is
 * too complex, and the reason of the signal once it is aborted.
 */
export async function requireFormat(
  format: OutputFormat,
  { organizationId }: Pick<RunningGateway, 'organizationId'>,
  signal: AbortSignal,
): Promise<void> {
  if (format.type !== 'json_schema') return
  const fault = await schemaFault(organizationId, format, signal)
  if (fault !== null) throw invalidField('text.format.schema', `${fault}.`)
}
