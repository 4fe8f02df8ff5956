import { type Static, type TSchema, Type } from '@sinclair/typebox'

/** A pattern with the rule that it stands for, to be appended to the name of the field. */
export const textRule = (pattern: string, rule: string) => ({ pattern, 'x-rule': rule })

/** A text without control characters. */
export const plainText = textRule(
  '^[^\\u0000-\\u001f\\u007f-\\u009f]*$',
  'must not have control characters, such as a line end or a tab',
)

/** A text of visible ASCII characters. */
export const visibleText = textRule('^[\\x21-\\x7e]*$', 'must have only visible ASCII characters, and no space')

/** 1 to 128 code points without control characters. Stored as sent, not trimmed. */
export const Name = Type.String({
  minLength: 1,
  maxLength: 128,
  ...plainText,
  description: 'A name for people: 1 to 128 characters. Two may have the same.',
})

/** A schema of one type that also accepts null. `[type, "null"]` is serialized many times faster than a union. */
export const Nullable = <S extends TSchema>(schema: S) =>
  Type.Unsafe<Static<S> | null>({
    ...schema,
    type: [schema.type, 'null'],
    ...(Array.isArray(schema.enum) && { enum: [...schema.enum, null] }),
  })

/** An id that Chowder makes. */
export const Uuid = (description: string) => Type.String({ format: 'uuid', description })

/** A time: ISO 8601 with a zone. */
export const DateTime = (description: string) => Type.String({ format: 'date-time', description })

/** An address. */
export const Uri = (description: string) => Type.String({ format: 'uri', description })

/** An enum of texts. With a tuple, `Type.Enum` of TypeBox 0.34 silently creates a wrong schema. */
export const OneOf = <const T extends readonly string[]>(values: T, description?: string) =>
  Type.Unsafe<T[number]>({ type: 'string', enum: [...values], ...(description && { description }) })
