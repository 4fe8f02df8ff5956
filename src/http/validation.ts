import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Ajv, type ErrorObject, type Options, type ValidateFunction } from 'ajv'
import fastJson from 'fast-json-stringify'
import type { FastifyInstance, FastifySchemaCompiler, FastifySerializerCompiler } from 'fastify'

/** A pattern with the rule that it stands for, as the end of a sentence that begins with the name of the field. */
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

/** An enum of texts. With a tuple, `Type.Enum` of TypeBox 0.34 silently makes a wrong schema. */
export const OneOf = <const T extends readonly string[]>(values: T, description?: string) =>
  Type.Unsafe<T[number]>({ type: 'string', enum: [...values], ...(description && { description }) })

/** For a call without a body: none, or an empty object. Fastify passes null for an absent body. */
export const NoBody = Nullable(Type.Object({}, { additionalProperties: false }))

/** Makes something of each schema once: routes, and apps of a process, have many in common, and compiling is slow. */
export function onceForEach<S extends object, T>(make: (schema: S) => T): (schema: S) => T {
  const made = new WeakMap<S, T>()
  return (schema) => {
    if (!made.has(schema)) made.set(schema, make(schema))
    return made.get(schema) as T
  }
}

const NoQuery = Type.Object({})
const strictQuery = onceForEach((schema: object) => ({ additionalProperties: false, ...schema }))

/** Refuses unknown query parameters on every route that is registered afterwards. */
export function useStrictQueries(app: FastifyInstance): void {
  app.addHook('onRoute', (route) => {
    route.schema = { ...route.schema, querystring: strictQuery(route.schema?.querystring ?? NoQuery) }
  })
}

/** Formats that only tell clients what a text is: the code that reads it says better what is wrong with it. */
const documentedFormats = { uuid: true, 'date-time': true, date: true, uri: true, binary: true } as const

/** An Ajv whose faults have their schema and value, and that knows `x-rule`. It converts no value. */
export function createAjv(options: Options): Ajv {
  const ajv = new Ajv({ verbose: true, allowUnionTypes: true, formats: documentedFormats, ...options })
  return ajv.addVocabulary(['x-rule', 'x-closed', 'x-examples'])
}

/** What a body may weigh of which every fault is reported: a value weighs 1, and a text 1 more for 64 characters. */
const maxExplainedWeight = 1000

/** Whether a value weighs no more than `maxExplainedWeight`. It looks at no more than that. */
function isExplained(value: unknown): boolean {
  let left = maxExplainedWeight
  const weigh = (part: unknown): void => {
    left -= typeof part === 'string' ? 1 + part.length / 64 : 1
    if (typeof part !== 'object' || part === null) return
    for (const name in part) {
      if (left < 0) return
      weigh((part as Record<string, unknown>)[name])
    }
  }
  weigh(value)
  return left >= 0
}

/** A compiled schema of a body. After a value that does not fit, `errors` has its faults. */
export interface BodyValidator {
  (body: unknown): boolean
  errors: ErrorObject[] | null
}

/**
 * Returns a compiler of schemas for bodies: no value is converted. It reports every fault of a small body, and the
 * first one of a large body, which may have as many faults as values.
 */
export function createBodyCompiler(options: Options): (schema: object) => BodyValidator {
  const first = createAjv(options)
  const all = createAjv({ ...options, allErrors: true })
  return onceForEach((schema) => {
    const fits = first.compile(schema)
    let explain: ValidateFunction | undefined
    const validate: BodyValidator = (body) => {
      if (fits(body)) return true
      validate.errors = fits.errors ?? null
      if (!isExplained(body)) return false
      explain ??= all.compile(schema)
      if (explain(body)) return true
      validate.errors = explain.errors ?? null
      return false
    }
    validate.errors = null
    return validate
  })
}

const compileBody = createBodyCompiler({ useDefaults: true })
// Parameters and headers are text. A number that is too large becomes Infinity, which strictNumbers would let past the
// limits.
// A parameter of several values that is sent once is a text, too: 'array' makes a list of it.
const others = createAjv({ useDefaults: true, coerceTypes: 'array', strictNumbers: false, allErrors: true })

/** Validates a body strictly: no value is coerced, and unknown fields are refused. */
export const strictBodies: FastifySchemaCompiler<TSchema> = ({ schema, httpPart }) =>
  httpPart === 'body' ? compileBody(schema) : others.compile(schema)

const compileSerializer = onceForEach((schema: TSchema) => fastJson(schema))

/** Compiles the serializer of an answer. That of a stream of events is sent as it is: its schema is for readers. */
export const serializers: FastifySerializerCompiler<TSchema> = ({ schema, contentType }) =>
  contentType === 'text/event-stream' ? String : compileSerializer(schema)
