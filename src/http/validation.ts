import { type TSchema, Type } from '@sinclair/typebox'
import { Ajv, type ErrorObject, type Options, type ValidateFunction } from 'ajv'
import fastJson from 'fast-json-stringify'
import type { FastifyInstance, FastifySchemaCompiler, FastifySerializerCompiler } from 'fastify'
import { Nullable } from '#platform/typebox.ts'

/** The body of a call without one: absent or an empty object. Fastify passes null for an absent body. */
export const NoBody = Nullable(Type.Object({}, { additionalProperties: false }))

/** Caches the result per schema: routes share schemas, and compiling is slow. */
export function onceForEach<S extends object, T>(make: (schema: S) => T): (schema: S) => T {
  const made = new WeakMap<S, T>()
  return (schema) => {
    if (!made.has(schema)) made.set(schema, make(schema))
    return made.get(schema) as T
  }
}

const NoQuery = Type.Object({})
const strictQuery = onceForEach((schema: object) => ({ additionalProperties: false, ...schema }))

/** Refuses unknown query parameters on every later route. */
export function useStrictQueries(app: FastifyInstance): void {
  app.addHook('onRoute', (route) => {
    route.schema = { ...route.schema, querystring: strictQuery(route.schema?.querystring ?? NoQuery) }
  })
}

/** Formats for readers of the document only: the code that parses such a text explains its fault better. */
const documentedFormats = { uuid: true, 'date-time': true, date: true, uri: true, binary: true } as const

/** An Ajv whose faults have their schema and value, and that supports `x-rule`. It converts no value. */
export function createAjv(options: Options): Ajv {
  const ajv = new Ajv({ verbose: true, allowUnionTypes: true, formats: documentedFormats, ...options })
  return ajv.addVocabulary(['x-rule', 'x-closed', 'x-examples'])
}

/** Maximum weight of a body whose faults are all reported: a value weighs 1, a text 1 more per 64 characters. */
const maxExplainedWeight = 1000

/** Whether a value weighs at most `maxExplainedWeight`. Stops counting there. */
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
// Parameters and headers are text. A number that is too large becomes Infinity; strictNumbers would skip its limits. A
// parameter of several values that is sent once is a text, too: 'array' makes a list of it.
const others = createAjv({ useDefaults: true, coerceTypes: 'array', strictNumbers: false, allErrors: true })

/** Validates a body strictly: no value is coerced, and unknown fields are refused. */
export const strictBodies: FastifySchemaCompiler<TSchema> = ({ schema, httpPart }) =>
  httpPart === 'body' ? compileBody(schema) : others.compile(schema)

const compileSerializer = onceForEach((schema: TSchema) => fastJson(schema))

/** Compiles the serializer of an answer. A stream of events is sent unchanged: its schema is for readers. */
export const serializers: FastifySerializerCompiler<TSchema> = ({ schema, contentType }) =>
  contentType === 'text/event-stream' ? String : compileSerializer(schema)
