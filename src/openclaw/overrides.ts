import { AppError } from '#platform/errors.ts'
import { isObject, nestedEntries, unsafeKeys } from './json.ts'
import { bareModel } from './model.ts'

/** A step down the configuration: a key of an object, or an index of an array. */
type Segment = string | number
type Path = readonly Segment[]

/** What a caller made its agent's own model, without its provider's name; null when the default is. */
export function overriddenModel(config: Record<string, unknown>): string | null {
  const { agents } = parseOverrides(config).tree
  const defaults = isObject(agents) ? agents.defaults : null
  const model = isObject(defaults) ? defaults.model : null
  const primary = isObject(model) ? model.primary : model
  return typeof primary === 'string' ? bareModel(primary) : null
}

export interface Overrides {
  /** Text of the workspace's SOUL.md; null when the caller set none. */
  systemPrompt: string | null
  /** What the caller wants otherwise than Chowder's defaults, nested; null removes a default. */
  tree: Record<string, unknown>
}

const maxBytes = 256 * 1024
const maxDepth = 32
const maxValues = 2000
const maxKeyCharacters = 512
const shownCharacters = 200

/**
 * What keeps an instance reachable, its keys its own and its files in its folder; `*` is any one key. `agents.list` is the
 * former form of `agents.entries`, which the gateway still translates when it starts.
 */
const forbidden = [
  'gateway',
  'plugins',
  'env',
  'auth',
  'secrets',
  'update',
  'discovery',
  'models.catalogRefresh',
  'models.providers',
  'agents.defaults.workspace',
  'agents.entries.*.workspace',
  'agents.defaults.agentDir',
  'agents.entries.*.agentDir',
  'session.store',
  'logging.file',
  'agents.list',
].map((rule) => ({ rule, keys: rule.split('.') }))

const refuse = (path: string, rule: string) =>
  new AppError('invalid', `openclaw_config: ${JSON.stringify(path.slice(0, shownCharacters))} ${rule}`)

const token = /([^.[\]"]+)|\[(\d{1,4})\]|\["((?:[^"\\]|\\.)*)"\]|\['((?:[^'\\]|\\.)*)'\]/y

/** `a.b[0]["c.d"]` → a, b, 0, c.d. Dots separate keys; a number is an index only in brackets. */
function parsePath(text: string): Segment[] {
  const malformed = refuse(text, 'is not a path: write keys with dots between them, and others as [0] or ["a.b"].')
  const path: Segment[] = []
  token.lastIndex = 0
  for (let at = 0; at < text.length; at = token.lastIndex) {
    const bracket = text[at] === '['
    if (path.length > 0 && !bracket) {
      if (text[at] !== '.') throw malformed
      token.lastIndex = at + 1
      if (text[at + 1] === '[') throw malformed
    }
    const match = token.exec(text)
    if (!match) throw malformed
    const [, plain, index, double, single] = match
    if (index !== undefined) path.push(Number(index))
    else path.push(plain ?? (double ?? single ?? '').replace(/\\(.)/g, '$1'))
  }
  if (path.length === 0 || path[0] === '' || typeof path[0] === 'number') throw malformed
  return path
}

/** Whether one path is the other's beginning: setting it would set, or remove, what the rule protects. */
const touches = (path: Path, keys: readonly string[]) =>
  keys.every((key, at) => at >= path.length || key === '*' || key === String(path[at]))

const show = (path: Path) =>
  path
    .map((segment, at) => {
      if (typeof segment === 'number') return `[${segment}]`
      if (!/^[^.[\]"]+$/.test(segment)) return `[${JSON.stringify(segment)}]`
      return at === 0 ? segment : `.${segment}`
    })
    .join('')

function check(path: Path): void {
  const name = show(path)
  for (const segment of path) {
    if (unsafeKeys.has(String(segment))) throw refuse(name, `must not contain the key ${segment}.`)
  }
  if (path.length > maxDepth) throw refuse(name, `is nested deeper than ${maxDepth} levels.`)
  // A key with dots is one key to the gateway, but whoever nests "defaults.workspace" means the protected path.
  const spelledOut = path.flatMap((segment) => String(segment).split('.'))
  for (const { rule, keys } of forbidden) {
    if (touches(path, keys) || touches(spelledOut, keys)) {
      throw refuse(name, `cannot be overridden: Chowder sets ${rule} itself.`)
    }
  }
}

/** Keys inside an array's objects are checked like all others; the array itself is one value. */
function* pathsWithin(path: Path, value: unknown): Generator<Path> {
  yield path
  if (Array.isArray(value)) for (const [index, item] of value.entries()) yield* pathsWithin([...path, index], item)
  else if (isObject(value)) for (const key of Object.keys(value)) yield* pathsWithin([...path, key], value[key])
}

/** Every value that is set, by its path; an empty object is a value, and so is an array. */
function* leaves(path: Path, value: unknown): Generator<[Path, unknown]> {
  if (!isObject(value) || Object.keys(value).length === 0) {
    for (const inner of pathsWithin(path, value)) check(inner)
    yield [path, value]
    return
  }
  if (path.length > maxDepth) check(path)
  for (const key of Object.keys(value)) yield* leaves([...path, key], value[key])
}

/** Puts the value in its place, making the objects and arrays on the way. */
function place(tree: Record<string, unknown>, path: Path, value: unknown): void {
  const conflict = () => refuse(show(path), 'is set twice, or conflicts with another key.')
  let at: Record<Segment, unknown> | unknown[] = tree
  for (const [depth, segment] of path.entries()) {
    if (Array.isArray(at) !== (typeof segment === 'number')) throw conflict()
    if (Array.isArray(at) && Number(segment) > at.length) {
      throw refuse(show(path), `leaves a gap: there is no element ${at.length}.`)
    }
    const here = at as Record<Segment, unknown>
    const existing = here[segment]
    if (depth === path.length - 1) {
      if (existing === undefined) here[segment] = structuredClone(value)
      else if (!(isObject(existing) && isObject(value))) throw conflict()
      return
    }
    if (existing === undefined) here[segment] = typeof path[depth + 1] === 'number' ? [] : {}
    else if (!isObject(existing) && !Array.isArray(existing)) throw conflict()
    at = here[segment] as Record<Segment, unknown> | unknown[]
  }
}

/** Refuses a configuration that is too large or nested too deeply to be checked path by path. */
function checkSize(config: Record<string, unknown>): void {
  let values = 0
  for (const { key, value, depth } of nestedEntries(config)) {
    values += 1
    if (values > maxValues) throw new AppError('invalid', `openclaw_config must not set more than ${maxValues} values.`)
    if (key.length > maxKeyCharacters) throw refuse(key, `is a key of more than ${maxKeyCharacters} characters.`)
    if (depth > maxDepth && typeof value === 'object' && value !== null) {
      throw new AppError('invalid', `openclaw_config is nested deeper than ${maxDepth} levels.`)
    }
  }
}

/**
 * Reads `openclaw_config`. Keys of the outermost object are paths, with dots, `[0]` and `["a.b"]`; keys further in are
 * taken to the letter; both ways may be mixed. null removes what Chowder would set. `agent.system_prompt` is Chowder's
 * own; whether the rest makes sense is the gateway's to judge.
 * Throws AppError `invalid` naming the path for one that is malformed, protected, set twice, or beyond the limits.
 */
export function parseOverrides(config: Record<string, unknown>): Overrides {
  checkSize(config)
  if (Buffer.byteLength(JSON.stringify(config)) > maxBytes) {
    throw new AppError('invalid', `openclaw_config must not be larger than ${maxBytes / 1024} KiB.`)
  }
  const tree: Record<string, unknown> = {}
  let systemPrompt: string | null = null
  for (const key of Object.keys(config)) {
    for (const [path, value] of leaves(parsePath(key), config[key])) place(tree, path, value)
  }
  const { agent } = tree
  if (isObject(agent) && 'system_prompt' in agent) {
    const { system_prompt: prompt, ...rest } = agent
    if (prompt !== null && typeof prompt !== 'string') throw refuse('agent.system_prompt', 'must be a text.')
    systemPrompt = prompt
    if (Object.keys(rest).length > 0) tree.agent = rest
    else delete tree.agent
  }
  return { systemPrompt, tree }
}
