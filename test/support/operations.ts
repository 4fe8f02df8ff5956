import { Ajv2020 } from 'ajv/dist/2020.js'
import { createRoutes, documentText } from '#commands/openapi.ts'
import type { ApiDocument, Media, Operation } from '#http/openapi.ts'

export type Schema = Record<string, unknown>
export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'

export interface DocumentedOperation {
  /** `GET /v1/instances/{instance_id}` */
  name: string
  method: Method
  path: string
  operation: Operation
}

export interface DocumentedRequest {
  method: Method
  url: string
  headers: Record<string, string>
  payload?: string
}

/** The OpenAPI document, made from the routes without a server. */
export async function readDocument(): Promise<ApiDocument> {
  const app = await createRoutes()
  const document = JSON.parse(documentText(app)) as ApiDocument
  await app.close()
  return document
}

/** Every operation of the document, in its order. */
export const operationsOf = ({ paths }: ApiDocument): DocumentedOperation[] =>
  Object.entries(paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([lower, operation]) => {
      const method = lower.toUpperCase() as Method
      return { name: `${method} ${path}`, method, path, operation }
    }),
  )

/** The schema of a reference. */
export function resolve(document: ApiDocument, schema: Schema): Schema {
  const name = typeof schema.$ref === 'string' ? schema.$ref.split('/').at(-1) : undefined
  return name === undefined ? schema : (document.components.schemas[name] as Schema)
}

/** The examples of a body or an answer, as the document shows them beside its schema. */
export const examplesOf = ({ example, examples = {} }: Media): unknown[] =>
  example === undefined ? Object.values(examples).map(({ value }) => value) : [example]

const uuid = /^[\da-f]{8}-[\da-f]{4}-[\da-f]{4}-[\da-f]{4}-[\da-f]{12}$/
const day = /^\d{4}-\d\d-\d\d$/
const uri = /^[a-z][a-z\d+.-]*:[\x21-\x7e]+$/
const dateTime = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$/
export const formats = { uuid, date: day, 'date-time': dateTime, uri, binary: true } as const

/** Returns the faults of a value against a schema of the document; none when it fits. */
export function checkerOf(document: ApiDocument): (schema: Schema, value: unknown) => unknown[] {
  const ajv = new Ajv2020({ strict: false, formats, allErrors: true })
  ajv.addSchema({ $id: 'document', components: document.components })
  const compiled = new Map<Schema, ReturnType<typeof ajv.compile>>()
  return (schema, value) => {
    const validate =
      compiled.get(schema) ?? ajv.compile(JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"document#/')))
    compiled.set(schema, validate)
    return validate(value) ? [] : (validate.errors ?? [])
  }
}

const boundary = 'documented-form'

/** A form with a small file. */
function formOf(fields: Record<string, string>): string {
  const parts = Object.entries(fields).map(
    ([name, value]) => `--${boundary}\r\ncontent-disposition: form-data; name="${name}"\r\n\r\n${value}\r\n`,
  )
  const file = `--${boundary}\r\ncontent-disposition: form-data; name="file"; filename="f"\r\ncontent-type: application/octet-stream\r\n\r\nhello\r\n`
  return `${parts.join('')}${file}--${boundary}--\r\n`
}

/**
 * A request as the document shows it, with its parameters from `values`. Throws for a parameter that `values` does not
 * know, and for a body without an example: then the document, or the test that asks, has to be completed.
 */
export function requestOf(
  { name, method, path, operation }: DocumentedOperation,
  values: Record<string, string>,
): DocumentedRequest {
  const given = (parameter: string): string => {
    const value = values[parameter]
    if (value === undefined) throw new Error(`${name}: no value for the parameter ${parameter}`)
    return value
  }
  const query = (operation.parameters ?? []).filter(({ in: place, required }) => place === 'query' && required)
  const search = query.map((parameter) => `${parameter.name}=${encodeURIComponent(given(parameter.name))}`).join('&')
  const url = path.replace(/\{(\w+)\}/g, (_, parameter: string) => encodeURIComponent(given(parameter)))
  const request = { method, url: search ? `${url}?${search}` : url }
  const [body] = Object.entries(operation.requestBody?.content ?? {})
  if (!body) return { ...request, headers: {} }
  const [type, media] = body
  if (type === 'multipart/form-data') {
    return {
      ...request,
      headers: { 'content-type': `${type}; boundary=${boundary}` },
      payload: formOf({ path: given('path') }),
    }
  }
  const [shown] = examplesOf(media)
  if (shown === undefined) throw new Error(`${name}: the body has no example`)
  return { ...request, headers: { 'content-type': type }, payload: JSON.stringify(shown) }
}
