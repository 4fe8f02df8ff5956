import type { FastifySchemaCompiler } from 'fastify'
import { createAjv, strictBodies } from '#http/validation.ts'
import { isObject } from '#openclaw/json.ts'

const bodies = createAjv({ discriminator: true })

/** The `$id`s are for the OpenAPI document. Ajv refuses a schema that has the same one in two places. */
const withoutIds = (schema: object): object =>
  JSON.parse(JSON.stringify(schema, (key, value) => (key === '$id' ? undefined : value)))

/** Adds the `type` that clients may leave out of a message and of a reference to an item. */
function addType(item: unknown): void {
  if (!isObject(item) || item.type != null) return
  if (item.role !== undefined) item.type = 'message'
  else if (item.id !== undefined && Object.keys(item).every((key) => key === 'type' || key === 'id'))
    item.type = 'item_reference'
}

/**
 * Compiles schemas as `strictBodies` does, but for bodies whose items are selected by their `type`: validation reports
 * the faults of the selected shape only. It adds types that clients left out to the body.
 */
export const taggedBodies: FastifySchemaCompiler<object> = (route) => {
  if (route.httpPart !== 'body') return strictBodies(route as Parameters<typeof strictBodies>[0])
  const validate = bodies.compile(withoutIds(route.schema))
  const validateTyped = (body: unknown) => {
    if (isObject(body) && Array.isArray(body.input)) body.input.forEach(addType)
    const isValid = validate(body)
    validateTyped.errors = validate.errors ?? null
    return isValid
  }
  validateTyped.errors = null as ((typeof validate)['errors'] & {}) | null
  return validateTyped
}
