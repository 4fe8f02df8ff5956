import type { ErrorObject } from 'ajv'
import { closestWord } from '#platform/closest.ts'

export type RequestPart = 'body' | 'query' | 'path' | 'header'

/** Ajv adds the schema and the value to its errors. */
type Fault = ErrorObject & { parentSchema?: Record<string, unknown> & { properties?: Record<string, SchemaOfTag> } }
interface SchemaOfTag {
  const?: string
}

const typeWords: Record<string, string> = {
  string: 'a text',
  number: 'a number',
  integer: 'a whole number',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  null: 'null',
}

/** Maximum listed names. */
const maxListed = 12
const maxShownCharacters = 64

const list = (words: readonly string[]) => new Intl.ListFormat('en-GB', { type: 'disjunction' }).format(words)
const quoted = (names: readonly string[]) => names.map((name) => `\`${name}\``).join(', ')

function wordOf(value: unknown): string {
  if (typeof value === 'boolean') return String(value)
  if (typeof value === 'number') return Number.isFinite(value) ? 'a number' : 'a number that is too large'
  if (Array.isArray(value)) return 'a list'
  return typeWords[value === null ? 'null' : typeof value] ?? typeof value
}

/** Suggests the known word that is closest to a wrong one; if none is close, lists all when they are few. */
function suggestion(wrong: string, known: readonly string[], none: string): string {
  const close = closestWord(wrong, known)
  if (close !== undefined) return `; did you mean \`${close}\`?`
  if (known.length === 0) return `; ${none}`
  return known.length > maxListed ? '' : `; known: ${quoted(known)}`
}

function unknownName({ parentSchema, params }: Fault, part: RequestPart): string {
  const known = Object.keys(parentSchema?.properties ?? {})
  const name = String(params.additionalProperty)
  return part === 'query'
    ? `is not a known parameter${suggestion(name, known, 'this call has none')}`
    : `is not a known field${suggestion(name, known, 'this call takes an empty object, or no body')}`
}

function wrongType({ instancePath, parentSchema = {}, params, data }: Fault, part: RequestPart, hasBody: boolean) {
  const { required } = parentSchema
  if (part === 'body' && instancePath === '' && !hasBody) {
    return `is empty: send a JSON object${Array.isArray(required) ? ` with ${quoted(required)}` : ''}`
  }
  const types = [...new Set([params.type].flat().map((type: string) => typeWords[type] ?? type))]
  if (types.length === 1 && types[0] === 'null') return String(parentSchema['x-rule'] ?? 'must be null')
  if (part === 'body') {
    const isFraction = typeof data === 'number' && Number.isFinite(data)
    return `must be ${list(types)}, not ${isFraction ? String(data) : wordOf(data)}`
  }
  return Array.isArray(data) ? 'must be given only once' : `must be ${list(types)}`
}

function wrongTag({ parentSchema = {}, params }: Fault): string {
  const shapes = (parentSchema.oneOf ?? []) as { properties?: Record<string, SchemaOfTag> }[]
  const known = shapes.flatMap(({ properties }) => properties?.[params.tag]?.const ?? [])
  return `must have one of these as \`${params.tag}\`: ${known.join(', ')}`
}

const atLeast = (limit: number, things: string) =>
  limit === 1 ? 'must not be empty' : `must have at least ${limit} ${things}`

/** Describes a fault and the rule; appended to the name of the field. */
export function describeFault(error: ErrorObject, part: RequestPart, hasBody: boolean): string {
  const fault = error as Fault
  const { keyword, params, parentSchema, propertyName, message = 'is not valid' } = fault
  if (propertyName !== undefined) {
    const name = propertyName.slice(0, maxShownCharacters)
    return `has the key ${JSON.stringify(name)}, which ${describeFault({ ...fault, propertyName: undefined } as never, part, hasBody)}`
  }
  switch (keyword) {
    case 'required':
      return 'is missing'
    case 'additionalProperties':
      return unknownName(fault, part)
    case 'type':
      return wrongType(fault, part, hasBody)
    case 'enum':
      return oneOf(params.allowedValues, fault.data)
    case 'const':
      return `must be ${params.allowedValue}`
    case 'discriminator':
      return wrongTag(fault)
    case 'pattern':
      return String(parentSchema?.['x-rule'] ?? message)
    case 'minLength':
      return atLeast(params.limit, 'characters')
    case 'maxLength':
      return `must have at most ${params.limit} characters`
    case 'minItems':
      return atLeast(params.limit, 'items')
    case 'maxItems':
      return `must have at most ${params.limit} items`
    case 'uniqueItems':
      return `must not have the same item twice: ${params.i} and ${params.j}`
    case 'maxProperties':
      return `must have at most ${params.limit} ${params.limit === 1 ? 'key' : 'keys'}`
    case 'minProperties':
      return `must have at least ${params.limit} ${params.limit === 1 ? 'key' : 'keys'}`
    case 'minimum':
      return String(parentSchema?.['x-rule'] ?? `must be at least ${params.limit}`)
    case 'maximum':
      return `must be at most ${params.limit}`
    default:
      return message
  }
}

function oneOf(values: readonly (string | null)[], value: unknown): string {
  const allowed = values.filter((one) => one !== null)
  const close = typeof value === 'string' ? closestWord(value, allowed) : undefined
  const rule = allowed.length === 1 ? `must be ${allowed[0]}` : `must be one of: ${allowed.join(', ')}`
  return close === undefined || allowed.length === 1 ? rule : `${rule}; did you mean \`${close}\`?`
}
