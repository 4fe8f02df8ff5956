import { isDeepStrictEqual } from 'node:util'
import swagger from '@fastify/swagger'
import type { FastifyContextConfig, FastifyInstance, FastifySchema } from 'fastify'
import { answerHeaders, headers } from './answer-headers.ts'
import { type Access, describeAccess } from './auth.ts'
import { forClients } from './client-schema.ts'
import { ErrorBody } from './error-body.ts'
import { errorResponses, responseOf } from './error-responses.ts'
import { examplesBeside } from './examples.ts'

/**
 * The error answers of one route, for its schema. The document adds those of every such route: 400, 401, 403, 413, 415,
 * 421, 422, 429, 500 and 503.
 */
export const failures = <const S extends readonly number[]>(...statuses: S) =>
  Object.fromEntries(statuses.map((status) => [status, ErrorBody])) as { [K in S[number]]: typeof ErrorBody }

type Schema = Record<string, unknown>
type Reference = { $ref: string }

/** A body or an answer of one type, with one example, or several by name. */
export interface Media {
  schema: Schema
  example?: unknown
  examples?: Record<string, { value: unknown }>
}

interface Response {
  description: string
  headers?: Record<string, unknown>
  content?: Record<string, Media>
}

export interface Operation {
  operationId: string
  summary: string
  description: string
  tags: string[]
  /** The key that a call needs. */
  'x-permission': Access
  'x-optional-body'?: true
  'x-body-examples'?: Pick<Media, 'example' | 'examples'>
  'x-answers-everybody'?: true
  security?: Record<string, string[]>[]
  parameters?: { in: 'path' | 'query' | 'header'; name: string; required: boolean; schema: Schema }[]
  requestBody?: {
    required: boolean
    description?: string
    content: Record<string, Media>
  }
  responses: Record<string, Response | Reference>
}

/** The parts of an OpenAPI 3.1 document that this API uses. */
export interface ApiDocument {
  openapi: string
  info: { title: string; version: string; description: string }
  servers: { url: string; description: string }[]
  security: Record<string, string[]>[]
  tags: { name: string; 'x-displayName': string; description: string }[]
  paths: Record<string, Record<string, Operation>>
  components: Record<'schemas' | 'responses' | 'headers' | 'securitySchemes', Record<string, Schema>>
}

const isObject = (value: unknown): value is Schema => typeof value === 'object' && value !== null

/** Whether a request may omit a property because it has a default. */
const hasDefault = ({ properties }: Schema, name: unknown) =>
  isObject(properties) && isObject(properties[String(name)]) && 'default' in (properties[String(name)] as Schema)

/** The possible values of `type` in a named shape; null for other schemas. */
function typesOf({ $id, properties }: Schema): unknown[] | null {
  if ($id === undefined || !isObject(properties) || !isObject(properties.type)) return null
  const { const: only, enum: several = [only] } = properties.type
  return several as unknown[]
}

/** Adds a `discriminator` to a union of named shapes, so that generated unions narrow on `type`. */
function discriminated(schema: Schema, resolved: Schema): Schema {
  const { anyOf, oneOf = anyOf, ...others } = resolved
  const shapes = (schema.oneOf ?? schema.anyOf) as Schema[] | undefined
  if (!shapes?.every(typesOf)) return resolved
  const mapping = shapes.flatMap((shape) =>
    (typesOf(shape) ?? []).map((type) => [type, `#/components/schemas/${shape.$id}`]),
  )
  return { ...others, oneOf, discriminator: { propertyName: 'type', mapping: Object.fromEntries(mapping) } }
}

/** Replaces named schemas by references; adds them to `named`. */
function withReferences(schema: unknown, named: Map<string, Schema>): unknown {
  if (Array.isArray(schema)) return schema.map((item) => withReferences(item, named))
  if (!isObject(schema)) return schema
  const { $id, 'x-examples': _shown, ...rest } = forClients(schema)
  const parts = Object.entries(rest).map(([key, value]) => [
    key,
    key === 'examples' ? value : withReferences(value, named),
  ])
  const resolved = discriminated(rest, Object.fromEntries(parts))
  if (Array.isArray(rest.required)) resolved.required = rest.required.filter((name) => !hasDefault(rest, name))
  if (typeof $id !== 'string') return resolved
  if (named.has($id) && !isDeepStrictEqual(named.get($id), resolved))
    throw new Error(`two schemas have the name ${$id}`)
  named.set($id, resolved)
  return { $ref: `#/components/schemas/${$id}` }
}

/** The documented body: a nullable body is optional, and a body that can only be empty is no body. */
function bodyOf(body: unknown): { body?: unknown; isOptional: boolean } {
  if (!isObject(body) || !Array.isArray(body.type) || !body.type.includes('null')) return { body, isOptional: false }
  const isEmpty = Object.keys(body.properties ?? {}).length === 0
  return isEmpty ? { isOptional: true } : { body: { ...body, type: 'object' }, isOptional: true }
}

const mediaOf = (schema: Schema, named: Map<string, Schema>): Media => ({
  schema: withReferences(schema, named) as Schema,
  ...examplesBeside(schema),
})

/** A documented answer. One with several types has them as `content`; a null one has none. */
function describeAnswer(answer: Schema, named: Map<string, Schema>): Schema {
  if (answer.type === 'null') return answer
  const { content = { 'application/json': { schema: answer } }, description } = answer as unknown as Response
  const media = Object.entries(content).map(([type, { schema }]) => [type, mediaOf(schema, named)])
  return { ...(answer.$id === undefined && { description }), content: Object.fromEntries(media) }
}

function describe(schema: FastifySchema, config: FastifyContextConfig, named: Map<string, Schema>): FastifySchema {
  const { access = 'public', answersEverybody } = config
  const { body: validated, querystring, response, description = '', ...rest } = schema
  const { body, isOptional } = bodyOf(validated)
  const answers: Record<string, Schema> = {
    ...(response as object),
    ...(querystring !== undefined && failures(422)),
  }
  const described = {
    ...rest,
    ...(querystring !== undefined && { querystring: withReferences(querystring, named) }),
    ...(isObject(body) && { body: withReferences(body, named), 'x-body-examples': examplesBeside(body) }),
    response: Object.fromEntries(
      Object.entries(answers).map(([status, answer]) => [status, describeAnswer(answer, named)]),
    ),
    description: `${description}\n\n${describeAccess(access)}`.trim(),
    ...(access === 'public' && { security: [] }),
    'x-permission': access,
    ...(isOptional && { 'x-optional-body': true }),
    ...(answersEverybody && { 'x-answers-everybody': true }),
  }
  return described
}

const isError = (status: number) => status >= 400
const successes: Record<string, string> = {
  200: 'The answer.',
  201: 'The resource was created.',
  202: 'The work continues.',
  204: 'The work is done.',
}

/** Adds the answers of every such route, and the headers of each answer. Returns the statuses of the errors. */
function complete([method, operation]: [string, Operation]): number[] {
  const { requestBody, parameters = [], responses } = operation
  const isLimited = operation['x-permission'] !== 'public' || responses[429] !== undefined
  const errorStatuses = new Set([500, 503, ...Object.keys(responses).map(Number).filter(isError)])
  const add = (...statuses: number[]) => {
    for (const status of statuses) errorStatuses.add(status)
  }
  if (operation['x-permission'] !== 'public') add(401, 429)
  if (!operation['x-answers-everybody']) add(403, 421)
  if (method !== 'get') add(400, 413) // of any body
  add(415) // of any body, also of one that a GET should not have
  if (parameters.some((parameter) => parameter.in === 'path')) add(400) // of a malformed path
  if (requestBody) {
    delete requestBody.description // defined in the schema
    for (const media of Object.values(requestBody.content)) Object.assign(media, operation['x-body-examples'])
    requestBody.required = operation['x-optional-body'] !== true
  }
  for (const parameter of parameters) {
    if (parameter.in === 'query' && parameter.schema.type === 'object') {
      Object.assign(parameter, { style: 'deepObject', explode: true }) // matches parseQuery
    }
  }
  const hasParameter = (name: string) => parameters.some((parameter) => parameter.name === name)
  if (hasParameter('idempotency-key')) add(409)
  for (const [status, answer] of Object.entries(responses)) {
    if ('$ref' in answer || isError(Number(status))) continue
    if (answer.description === 'Default Response') answer.description = successes[status] ?? 'The answer.'
    answer.headers = {
      ...answer.headers,
      ...answerHeaders.every,
      ...(isLimited && answerHeaders.limited),
      ...(hasParameter('cursor') && answerHeaders.paged),
      ...(hasParameter('idempotency-key') && answerHeaders.replayable),
    }
  }
  delete operation['x-optional-body']
  delete operation['x-body-examples']
  delete operation['x-answers-everybody']
  const statuses = [...errorStatuses].sort((a, b) => a - b)
  for (const status of statuses) responses[status] = responseOf(status)
  return statuses
}

/** The paths in the order of their tags and registration. */
function ordered(paths: ApiDocument['paths'], tags: ApiDocument['tags']): ApiDocument['paths'] {
  const places = new Map(tags.map(({ name }, at) => [name, at]))
  const place = (operations: Record<string, Operation>) =>
    places.get(Object.values(operations)[0]?.tags[0] ?? '') ?? tags.length
  return Object.fromEntries(Object.entries(paths).sort(([, a], [, b]) => place(a) - place(b)))
}

/** The parts of the document that are not in the routes. */
export type AboutApi = Pick<ApiDocument, 'info' | 'servers' | 'tags'>

/**
 * Makes `app.swagger()` return the OpenAPI 3.1 document of all later routes, from the schemas that validate their
 * requests. A schema with an `$id` becomes a component of that name. A route with `hide` in its schema is omitted.
 */
export async function useOpenApi(app: FastifyInstance, about: AboutApi): Promise<void> {
  const named = new Map<string, Schema>()
  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      ...about,
      security: [{ apiKey: [] }],
      components: {
        securitySchemes: {
          apiKey: {
            type: 'http',
            scheme: 'bearer',
            description:
              'An organization key (`chd_org_…`), which has every permission in its organization, or a scoped key ' +
              '(`chd_sk_…`), which has its own permissions on its own instances.',
          },
        },
      },
    },
    convertConstToEnum: false,
    transform: ({ schema, url, route }) => ({
      url,
      schema: schema?.hide ? schema : describe(schema ?? {}, route.config ?? {}, named),
    }),
    transformObject: (made) => {
      const document = ('openapiObject' in made ? made.openapiObject : {}) as unknown as ApiDocument
      const statuses = Object.values(document.paths).flatMap((operations) =>
        Object.entries(operations).flatMap(complete),
      )
      withReferences(ErrorBody, named)
      const { openapi, info, servers, security, tags, paths, components } = document
      const sorted = [...named].sort(([a], [b]) => (a < b ? -1 : 1))
      const responses = errorResponses(new Set(statuses))
      return {
        openapi,
        info,
        servers,
        security,
        tags,
        paths: ordered(paths, tags),
        components: { ...components, schemas: Object.fromEntries(sorted), responses, headers },
      } as never
    },
  })
}
