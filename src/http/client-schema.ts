type Schema = Record<string, unknown>

const isObject = (value: unknown): value is Schema => typeof value === 'object' && value !== null

/** Generators drop a property that can only be null, and refuse later values of an enum with one value. */
function openProperty(schema: Schema): Schema {
  if (schema.type === 'null') return { ...schema, type: ['string', 'null'] }
  if (schema.type !== 'string' || !Array.isArray(schema.enum) || schema.enum.length !== 1) return schema
  const { enum: only, ...open } = schema
  const note = `\`${only}\` today; more values may come.`
  return { ...open, description: open.description ? `${open.description} ${note}` : note }
}

/** Replaces a pattern for all names by `additionalProperties`, which generators know. */
function withoutPatterns(schema: Schema): Schema {
  const { patternProperties, ...rest } = schema
  if (!isObject(patternProperties)) return schema
  const [[pattern = '', value] = [], ...others] = Object.entries(patternProperties)
  if (others.length > 0) throw new Error('a schema has more than one pattern of property names')
  const names = pattern === '^(.*)$' ? {} : { propertyNames: { pattern } }
  return { ...rest, ...names, additionalProperties: value }
}

/** Options of a body with unknown fields that the route itself refuses: a strict schema would answer another status. */
export const closed = { additionalProperties: true, 'x-closed': true }

/**
 * A schema in the form that suits generators of clients. It allows the values of the schema, and those that a later
 * version of the API may answer.
 */
export function forClients(schema: Schema): Schema {
  const { properties, 'x-closed': isClosed, ...others } = withoutPatterns(schema)
  const rest = isClosed ? { ...others, additionalProperties: false } : others
  if (!isObject(properties)) return rest
  const open = Object.entries(properties).map(([name, property]) => [
    name,
    isObject(property) && !('$ref' in property) ? openProperty(property) : property,
  ])
  return { ...rest, properties: Object.fromEntries(open) }
}
