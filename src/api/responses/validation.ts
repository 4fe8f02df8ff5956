import { Ajv } from 'ajv'
import type { FastifySchemaCompiler } from 'fastify'
import { strictBodies } from '#http/validation.ts'
import { isObject } from '#openclaw/json.ts'

const bodies = new Ajv({
  coerceTypes: false,
  removeAdditional: false,
  allErrors: true,
  allowUnionTypes: true,
  discriminator: true,
})

/** The names are the document's; Ajv would take a shape that stands in two places for two of one name. */
const withoutNames = (schema: object): object =>
  JSON.parse(JSON.stringify(schema, (key, value) => (key === '$id' ? undefined : value)))

/** Gives a message, and a reference, the `type` that clients may leave out. */
function name(item: unknown): void {
  if (!isObject(item) || item.type != null) return
  if (item.role !== undefined) item.type = 'message'
  else if (item.id !== undefined && Object.keys(item).every((key) => key === 'type' || key === 'id'))
    item.type = 'item_reference'
}

/** As `strictBodies`, but a list's items are told apart by their `type`, and so are the faults in them. */
export const taggedBodies: FastifySchemaCompiler<object> = (route) => {
  if (route.httpPart !== 'body') return strictBodies(route as Parameters<typeof strictBodies>[0])
  const validate = bodies.compile(withoutNames(route.schema))
  const named = (body: unknown) => {
    if (isObject(body) && Array.isArray(body.input)) body.input.forEach(name)
    const isValid = validate(body)
    named.errors = validate.errors ?? null
    return isValid
  }
  named.errors = null as ((typeof validate)['errors'] & {}) | null
  return named
}
