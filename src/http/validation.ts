import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Ajv } from 'ajv'
import fastJson from 'fast-json-stringify'
import type { FastifySchemaCompiler, FastifySerializerCompiler } from 'fastify'

/** No control characters. */
export const plainText = '^[^\\u0000-\\u001f\\u007f-\\u009f]*$'

/** 1 to 128 code points without control characters; kept as given, not trimmed. */
export const Name = Type.String({ minLength: 1, maxLength: 128, pattern: plainText })

/** Of a schema with a plain type that becomes `[type, "null"]`, which is serialized many times faster than a union. */
export const Nullable = <S extends TSchema>(schema: S) =>
  Type.Unsafe<Static<S> | null>({ ...schema, type: [schema.type, 'null'] })

/** The enum of a tuple. `Type.Enum(tuple)` would silently build a wrong schema on TypeBox 0.34. */
export const OneOf = <const T extends readonly string[]>(values: T, description?: string) =>
  Type.Unsafe<T[number]>({ type: 'string', enum: [...values], ...(description && { description }) })

/** Of a call that needs no body: none, or an empty object. Fastify hands an absent one over as null. */
export const NoBody = Nullable(Type.Object({}, { additionalProperties: false }))

const common = { removeAdditional: false, useDefaults: true, allErrors: true, allowUnionTypes: true } as const
const bodies = new Ajv({ ...common, coerceTypes: false })
// Everything outside a body arrives as text. A number too large for one becomes Infinity, which strictNumbers would
// let past the limits.
const others = new Ajv({ ...common, coerceTypes: true, strictNumbers: false })

/** Validates a body as it came: nothing is coerced and unknown fields are refused. */
export const strictBodies: FastifySchemaCompiler<TSchema> = ({ schema, httpPart }) =>
  (httpPart === 'body' ? bodies : others).compile(schema)

/** Compiles each schema once, however many routes answer with it: most have their failures in common. */
export function sharedSerializers(): FastifySerializerCompiler<TSchema> {
  const known = new WeakMap<TSchema, ReturnType<FastifySerializerCompiler<TSchema>>>()
  return ({ schema }) => {
    const serialize = known.get(schema) ?? fastJson(schema)
    known.set(schema, serialize)
    return serialize
  }
}
