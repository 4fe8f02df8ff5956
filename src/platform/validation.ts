import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Ajv } from 'ajv'
import type { FastifySchemaCompiler } from 'fastify'

/** 1 to 128 code points without control characters; kept as given, not trimmed. */
export const Name = Type.String({ minLength: 1, maxLength: 128, pattern: '^[^\\u0000-\\u001f\\u007f-\\u009f]*$' })

/** Of a schema with a plain type that becomes `[type, "null"]`, which is serialized many times faster than a union. */
export const Nullable = <S extends TSchema>(schema: S) =>
  Type.Unsafe<Static<S> | null>({ ...schema, type: [schema.type, 'null'] })

/** The enum of a tuple. `Type.Enum(tuple)` would silently build a wrong schema on TypeBox 0.34. */
export const OneOf = <const T extends readonly string[]>(values: T) =>
  Type.Unsafe<T[number]>({ type: 'string', enum: [...values] })

const common = { removeAdditional: false, useDefaults: true, allErrors: true, allowUnionTypes: true } as const
const bodies = new Ajv({ ...common, coerceTypes: false })
// Everything outside a body arrives as text.
const others = new Ajv({ ...common, coerceTypes: true })

/** Validates a body as it came: nothing is coerced and unknown fields are refused. */
export const strictBodies: FastifySchemaCompiler<TSchema> = ({ schema, httpPart }) =>
  (httpPart === 'body' ? bodies : others).compile(schema)
