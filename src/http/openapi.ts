import { isDeepStrictEqual } from 'node:util'
import swagger from '@fastify/swagger'
import type { FastifyInstance, FastifySchema } from 'fastify'
import { answerHeaders, headers } from './answer-headers.ts'
import { type Access, describeAccess } from './auth.ts'
import { forClients } from './client-schema.ts'
import { ErrorBody } from './error-body.ts'
import { errorResponses, responseOf } from './error-responses.ts'

/**
 * The error answers of one route, for its schema. The document adds those that every such route can give: 400, 401,
 * 403, 413, 415, 422, 429, 500 and 503.
 */
export const failures = <const S extends readonly number[]>(...statuses: S) =>
  Object.fromEntries(statuses.map((status) => [status, ErrorBody])) as { [K in S[number]]: typeof ErrorBody }

type Schema = Record<string, unknown>
type Reference = { $ref: string }

interface Response {
  description: string
  headers?: Record<string, unknown>
  content?: Record<string, { schema: Schema; example?: unknown }>
}

export interface Operation {
  operationId: string
  summary: string
  description: string
  tags: string[]
  /** The key that a call needs. */
  'x-permission': Access
  'x-optional-body'?: true
  security?: Record<string, string[]>[]
  parameters?: { in: 'path' | 'query' | 'header'; name: string; required: boolean; schema: Schema }[]
  requestBody?: {
    required: boolean
    description?: string
    content: Record<string, { schema: Schema; example?: unknown }>
  }
  responses: Record<string, Response | Reference>
}

/** The part of an OpenAPI 3.1 document that this API has. */
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

/** Whether a request can leave a property out because it has a default. */
const hasDefault = ({ properties }: Schema, name: unknown) =>
  isObject(properties) && isObject(properties[String(name)]) && 'default' in (properties[String(name)] as Schema)

/** The schema with references to named schemas in their places; adds these to `named`. */
function withReferences(schema: unknown, named: Map<string, Schema>): unknown {
  if (Array.isArray(schema)) return schema.map((item) => withReferences(item, named))
  if (!isObject(schema)) return schema
  const { $id, ...rest } = forClients(schema)
  const resolved = Object.fromEntries(Object.entries(rest).map(([key, value]) => [key, withReferences(value, named)]))
  if (Array.isArray(rest.required)) resolved.required = rest.required.filter((name) => !hasDefault(rest, name))
  if (typeof $id !== 'string') return resolved
  if (named.has($id) && !isDeepStrictEqual(named.get($id), resolved))
    throw new Error(`two schemas have the name ${$id}`)
  named.set($id, resolved)
  return { $ref: `#/components/schemas/${$id}` }
}

/** The documented body: a body that can be null is optional, and a body that can only be empty is no body. */
function bodyOf(body: unknown): { body?: unknown; isOptional: boolean } {
  if (!isObject(body) || !Array.isArray(body.type) || !body.type.includes('null')) return { body, isOptional: false }
  const isEmpty = Object.keys(body.properties ?? {}).length === 0
  return isEmpty ? { isOptional: true } : { body: { ...body, type: 'object' }, isOptional: true }
}

function describe(schema: FastifySchema, access: Access, named: Map<string, Schema>): FastifySchema {
  const { body: validated, querystring, response, description = '', ...rest } = schema
  const { body, isOptional } = bodyOf(validated)
  const described = {
    ...rest,
    ...(querystring !== undefined && { querystring: withReferences(querystring, named) }),
    ...(body !== undefined && { body: withReferences(body, named) }),
    response: withReferences({ ...(response as object), ...(querystring !== undefined && failures(422)) }, named),
    description: `${description}\n\n${describeAccess(access)}`.trim(),
    ...(access === 'public' && { security: [] }),
    'x-permission': access,
    ...(isOptional && { 'x-optional-body': true }),
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

/**
 * Adds the answers that every such route can give, and the headers of each answer. Returns the statuses of the errors.
 */
function complete([method, operation]: [string, Operation]): number[] {
  const { requestBody, parameters = [], responses } = operation
  const isLimited = operation['x-permission'] !== 'public' || responses[429] !== undefined
  const errorStatuses = new Set([500, 503, ...Object.keys(responses).map(Number).filter(isError)])
  const add = (...statuses: number[]) => {
    for (const status of statuses) errorStatuses.add(status)
  }
  if (operation['x-permission'] !== 'public') add(401, 403, 429)
  if (method !== 'get') add(400, 413, 415) // of any body
  if (requestBody) {
    delete requestBody.description // the schema has it
    requestBody.required = operation['x-optional-body'] !== true
  }
  for (const parameter of parameters) {
    if (parameter.in === 'query' && parameter.schema.type === 'object') {
      Object.assign(parameter, { style: 'deepObject', explode: true }) // as parseQuery reads it
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
  const statuses = [...errorStatuses].sort((a, b) => a - b)
  for (const status of statuses) responses[status] = responseOf(status)
  return statuses
}

/** The paths, and the methods of each, in the order of a list of operation ids; those that it lacks come last. */
function ordered(paths: ApiDocument['paths'], ids: readonly string[]): ApiDocument['paths'] {
  const place = ({ operationId }: Operation) => (ids.includes(operationId) ? ids.indexOf(operationId) : ids.length)
  const sorted = Object.entries(paths).map(([path, operations]) => {
    const own = Object.entries(operations).sort(([, a], [, b]) => place(a) - place(b))
    return { path, own, first: Math.min(...own.map(([, operation]) => place(operation))) }
  })
  sorted.sort((a, b) => a.first - b.first)
  return Object.fromEntries(sorted.map(({ path, own }) => [path, Object.fromEntries(own)]))
}

/** What the routes do not say of the API. */
export interface AboutApi extends Pick<ApiDocument, 'info' | 'servers' | 'tags'> {
  /** The ids of all operations, as a reader should meet them. */
  operationOrder: readonly string[]
}

/**
 * Makes `app.swagger()` return the OpenAPI 3.1 document of the routes that are registered afterwards, from the schemas
 * that validate their requests. A schema with an `$id` becomes a component of that name. A route with `hide` in its
 * schema is left out.
 */
export async function useOpenApi(app: FastifyInstance, { operationOrder, ...about }: AboutApi): Promise<void> {
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
      schema: schema?.hide ? schema : describe(schema ?? {}, route.config?.access ?? 'public', named),
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
        paths: ordered(paths, operationOrder),
        components: { ...components, schemas: Object.fromEntries(sorted), responses, headers },
      } as never
    },
  })
}
