import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { AppError } from '#errors/app-error.ts'
import { isObject, mergePatch } from '#openclaw/json.ts'
import { releaseSource } from '#openclaw/releases.ts'
import { closestWord } from '#platform/closest.ts'
import { formatPath, type Path } from './path.ts'

/** The used part of a JSON schema. */
interface Schema {
  type?: string
  properties?: Record<string, Schema>
  additionalProperties?: boolean | Schema
}

/** An error in OpenClaw's own words, and a suggestion. */
interface Issue {
  text: string
  hint?: string | undefined
}

const shownIssues = 3
/** Maximum reported errors: a caller may write thousands of unknown keys. */
const shownCharacters = 500
const schemas = new Map<string, Schema>()
const validators = new WeakMap<Schema, z.ZodType>()

/** The schema of the configuration of a release, without OpenClaw's titles and descriptions. */
function schemaOf(release: string): Schema {
  const known = schemas.get(release)
  if (known) return known
  const schema = JSON.parse(readFileSync(join(releaseSource(release), 'config-schema.json'), 'utf8')) as Schema
  schemas.set(release, schema)
  return schema
}

/** Validates with zod like OpenClaw, for the same error texts. Each part of the schema is compiled at its first use. */
function validatorOf(schema: Schema): z.ZodType {
  const known = validators.get(schema)
  if (known) return known
  const validator = z.fromJSONSchema(schema as Parameters<typeof z.fromJSONSchema>[0])
  validators.set(schema, validator)
  return validator
}

/**
 * Checks overrides against the schema of a release, which need not be installed. Throws AppError
 * `invalid_openclaw_config` in OpenClaw's own words, with a suggestion. The schema does not cover all rules: the
 * gateway may still refuse the overrides at the start.
 */
export function checkAgainstSchema(release: string, tree: Record<string, unknown>): void {
  const issues = issuesOf(schemaOf(release), tree, [])
  if (issues.length === 0) return
  const hidden = issues.length - shownIssues
  const more = hidden > 0 ? ` (+${hidden} more issue${hidden === 1 ? '' : 's'})` : ''
  const shown = issues.slice(0, shownIssues)
  const texts = shown.map(({ text }) => (text.length > shownCharacters ? `${text.slice(0, shownCharacters)}…` : text))
  const hint = shown.flatMap((issue) => issue.hint ?? []).join(' ') || undefined
  const sentence = `OpenClaw refused the configuration: invalid config: ${texts.join('; ')}${more}`
  throw new AppError('invalid_openclaw_config', sentence, { param: 'openclaw_config', hint })
}

/**
 * Overrides are a part of a configuration, so an object that the schema names may lack keys. Other values are the
 * caller's own, and must be complete.
 */
function issuesOf(schema: Schema, value: unknown, path: Path): Issue[] {
  if (value === null) return [] // removes the current value
  if (!(isObject(value) && schema.properties)) return wholeIssues(schema, value, path)
  const { properties, additionalProperties } = schema
  const known = Object.keys(properties).filter((key) => Object.hasOwn(value, key)) // in the schema's order
  const others = Object.keys(value).filter((key) => !Object.hasOwn(properties, key) && value[key] !== null)
  return [
    ...known.flatMap((key) => issuesOf(properties[key] ?? {}, value[key], [...path, key])),
    ...(typeof additionalProperties === 'object'
      ? others.flatMap((key) => wholeIssues(additionalProperties, value[key], [...path, key]))
      : []),
    ...(additionalProperties === false && others.length > 0
      ? [unrecognized(others, Object.keys(properties), path)]
      : []),
  ]
}

function unrecognized(keys: string[], known: string[], path: Path): Issue {
  const close = keys.flatMap((key) => closestWord(key, known) ?? []).map((key) => formatPath([...path, key]))
  return {
    text: `${placeOf(path)}: Unrecognized key${keys.length > 1 ? 's' : ''}: ${keys.map((key) => JSON.stringify(key)).join(', ')}`,
    hint: close.length > 0 ? `(did you mean ${close.join(', ')}?)` : undefined,
  }
}

function wholeIssues(schema: Schema, value: unknown, path: Path): Issue[] {
  const { error } = validatorOf(schema).safeParse(isObject(value) ? mergePatch({}, value) : value)
  return (error?.issues ?? []).map((issue) => {
    const place = placeOf([...path, ...issue.path.filter((segment) => typeof segment !== 'symbol')])
    const types = issue.code === 'invalid_union' ? typesIn(issue) : []
    return {
      text: `${place}: ${issue.message}${allowedValues(issue)}`,
      hint: types.length > 0 ? `(the types of ${place} are: ${types.join(', ')})` : undefined,
    }
  })
}

/** The types of a union if no branch has the type of the value. */
function typesIn({ errors }: z.core.$ZodIssueInvalidUnion): string[] {
  const issues = errors.map((branch) => branch.find(({ path }) => path.length === 0))
  return issues.every((issue) => issue?.code === 'invalid_type') ? issues.map((issue) => issue.expected) : []
}

const placeOf = (path: Path) => (path.length === 0 ? '<root>' : formatPath(path))

/** OpenClaw's addition to zod's message. */
function allowedValues(issue: z.core.$ZodIssue): string {
  if (issue.code === 'invalid_type' && issue.expected === 'boolean') return ' (allowed: true, false)'
  if (issue.code === 'too_big' && issue.origin === 'number') {
    return issue.inclusive ? ` (maximum: ${issue.maximum})` : ` (must be less than ${issue.maximum})`
  }
  if (issue.code === 'too_small' && issue.origin === 'number') {
    return issue.inclusive ? ` (minimum: ${issue.minimum})` : ` (must be greater than ${issue.minimum})`
  }
  const allowed = issue.code === 'invalid_union' ? allowedIn(issue) : null
  return allowed === null ? '' : ` (allowed: ${[...new Set(allowed)].map((one) => JSON.stringify(one)).join(', ')})`
}

/** The values that a union allows; null when a branch allows more than a few. */
function allowedIn(issue: z.core.$ZodIssue): unknown[] | null {
  if (issue.code === 'invalid_value') return [...issue.values]
  if (issue.code === 'invalid_type') return issue.expected === 'boolean' ? [true, false] : null
  if (issue.code !== 'invalid_union' || issue.errors.length === 0) return null
  const branches = issue.errors.map((branch) => {
    const values = branch.map(allowedIn)
    return values.length === 0 || values.includes(null) ? null : values.flat()
  })
  return branches.includes(null) ? null : branches.flat()
}
