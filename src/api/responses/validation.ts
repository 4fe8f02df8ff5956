import type { FastifySchemaCompiler } from 'fastify'
import { type BodyValidator, createBodyCompiler, onceForEach, strictBodies } from '#http/validation.ts'
import { isObject } from '#openclaw/json.ts'

const compileBody = createBodyCompiler({ discriminator: true })

/** Removes the `$id`s of the OpenAPI document: Ajv refuses a schema with the same one in two places. */
const withoutIds = (schema: object): object =>
  JSON.parse(JSON.stringify(schema, (key, value) => (key === '$id' ? undefined : value)))

/** Adds the `type` that clients may omit from a message and from a reference to an item. */
function addType(item: unknown): void {
  if (!isObject(item) || item.type != null) return
  if (item.role !== undefined) item.type = 'message'
  else if (item.id !== undefined && Object.keys(item).every((key) => key === 'type' || key === 'id'))
    item.type = 'item_reference'
}

/**
 * Compiles a schema of a body with items that their `type` selects: validation reports only errors of the selected
 * shape. It adds missing types to the body.
 */
export const compileTagged = onceForEach((schema: object): BodyValidator => {
  const validate = compileBody(withoutIds(schema))
  const validateTyped: BodyValidator = (body) => {
    if (isObject(body) && Array.isArray(body.input)) body.input.forEach(addType)
    const isValid = validate(body)
    validateTyped.errors = validate.errors
    return isValid
  }
  validateTyped.errors = null
  return validateTyped
})

/** Compiles like `strictBodies`, but bodies with `compileTagged`. */
export const taggedBodies: FastifySchemaCompiler<object> = (route) =>
  route.httpPart === 'body' ? compileTagged(route.schema) : strictBodies(route as Parameters<typeof strictBodies>[0])
