import { AppError } from '#errors/app-error.ts'
import { isObject, nestedEntries, unsafeKeys } from '#openclaw/json.ts'
import { bareModel } from '#openclaw/models/providers.ts'
import { formatPath, type Path, type Segment } from './path.ts'

/** The agent's model in a caller's overrides, without a provider prefix; null if they set none. */
export function overriddenModel(config: Record<string, unknown>): string | null {
  const { agents } = parseOverrides(config).tree
  const defaults = isObject(agents) ? agents.defaults : null
  const model = isObject(defaults) ? defaults.model : null
  const primary = isObject(model) ? model.primary : model
  return typeof primary === 'string' ? bareModel(primary) : null
}

/** Whether overrides set or remove the model itself, not only its options. */
export function setsModel({ agents }: Record<string, unknown>): boolean {
  const defaults = isObject(agents) ? agents.defaults : undefined
  const model = isObject(defaults) ? defaults.model : undefined
  return isObject(model) ? 'primary' in model : model !== undefined
}

/** The path at which overrides say who may run which command; null if they do not. */
export function findSetApprovals({ tools, agents }: Record<string, unknown>): string | null {
  const entries = isObject(agents) && isObject(agents.entries) ? Object.entries(agents.entries) : []
  const places: [string, unknown][] = [
    ['tools', tools],
    ...entries.map(([name, entry]): [string, unknown] => [
      `agents.entries.${name}.tools`,
      isObject(entry) && entry.tools,
    ]),
  ]
  for (const [path, value] of places) {
    const name = ['exec', 'elevated'].find((key) => isObject(value) && key in value)
    if (name) return `${path}.${name}`
  }
  return null
}

export interface Overrides {
  /** Text of the workspace's SOUL.md; null when the caller set none. */
  systemPrompt: string | null
  /** The caller's changes to Chowder's defaults, nested; null removes a default. */
  tree: Record<string, unknown>
}

const maxBytes = 256 * 1024
const maxDepth = 32
const maxValues = 2000
const maxKeyCharacters = 512
const shownCharacters = 200

/**
 * Paths that callers may not override; `*` is any one key. They keep an instance reachable, its keys private and its
 * files in its folder. `agents.list` is an older form of `agents.entries`, which the gateway still translates when it
 * starts.
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
  new AppError(
    'invalid_openclaw_config',
    `openclaw_config: ${JSON.stringify(path.slice(0, shownCharacters))} ${rule}`,
    {
      param: 'openclaw_config',
    },
  )

const token = /([^.[\]"]+)|\[(\d{1,4})\]|\["((?:[^"\\]|\\.)*)"\]|\['((?:[^'\\]|\\.)*)'\]/y

/** Parses `a.b[0]["c.d"]` into a, b, 0, c.d. Dots separate keys; a number is an index only in brackets. */
function parsePath(text: string): Segment[] {
  const malformed = refuse(text, 'is not a path: write keys with dots between them, and others as [0] or ["a.b"].')
  const path: Segment[] = []
  token.lastIndex = 0
  for (let position = 0; position < text.length; position = token.lastIndex) {
    const bracket = text[position] === '['
    if (path.length > 0 && !bracket) {
      if (text[position] !== '.') throw malformed
      token.lastIndex = position + 1
      if (text[position + 1] === '[') throw malformed
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

/** Whether one path is a prefix of the other: setting the value would then change a protected one. */
const touches = (path: Path, keys: readonly string[]) =>
  keys.every((key, index) => index >= path.length || key === '*' || key === String(path[index]))

function check(path: Path): void {
  const name = formatPath(path)
  for (const segment of path) {
    if (unsafeKeys.has(String(segment))) throw refuse(name, `must not contain the key ${segment}.`)
  }
  if (path.length > maxDepth) throw refuse(name, `is nested deeper than ${maxDepth} levels.`)
  // The gateway reads a nested key with dots as one key, but the caller means the protected path.
  const spelledOut = path.flatMap((segment) => String(segment).split('.'))
  for (const { rule, keys } of forbidden) {
    if (touches(path, keys) || touches(spelledOut, keys)) {
      throw refuse(name, `cannot be overridden: Chowder sets ${rule} itself.`)
    }
  }
}

/** Yields the path of a value and of all values in it, including those in arrays. */
function* pathsWithin(path: Path, value: unknown): Generator<Path> {
  yield path
  if (Array.isArray(value)) for (const [index, item] of value.entries()) yield* pathsWithin([...path, index], item)
  else if (isObject(value)) for (const key of Object.keys(value)) yield* pathsWithin([...path, key], value[key])
}

/** Yields every value that is set, with its path. An array is one value, and so is an empty object. */
function* leaves(path: Path, value: unknown): Generator<[Path, unknown]> {
  if (!isObject(value) || Object.keys(value).length === 0) {
    for (const inner of pathsWithin(path, value)) check(inner)
    yield [path, value]
    return
  }
  if (path.length > maxDepth) check(path)
  for (const key of Object.keys(value)) yield* leaves([...path, key], value[key])
}

/** Sets the value at its path, and creates the objects and arrays above it. */
function setAtPath(tree: Record<string, unknown>, path: Path, value: unknown): void {
  const conflict = () => refuse(formatPath(path), 'is set twice, or conflicts with another key.')
  let parent: Record<Segment, unknown> | unknown[] = tree
  for (const [depth, segment] of path.entries()) {
    if (Array.isArray(parent) !== (typeof segment === 'number')) throw conflict()
    if (Array.isArray(parent) && Number(segment) > parent.length) {
      throw refuse(formatPath(path), `leaves a gap: there is no element ${parent.length}.`)
    }
    const container = parent as Record<Segment, unknown>
    const existing = container[segment]
    if (depth === path.length - 1) {
      if (existing === undefined) container[segment] = structuredClone(value)
      else if (!(isObject(existing) && isObject(value))) throw conflict()
      return
    }
    if (existing === undefined) container[segment] = typeof path[depth + 1] === 'number' ? [] : {}
    else if (!isObject(existing) && !Array.isArray(existing)) throw conflict()
    parent = container[segment] as Record<Segment, unknown> | unknown[]
  }
}

/** Refuses a configuration that is too large or nested too deeply to be checked path by path. */
function checkSize(config: Record<string, unknown>): void {
  let values = 0
  for (const { key, value, depth } of nestedEntries(config)) {
    values += 1
    if (values > maxValues)
      throw new AppError('invalid_openclaw_config', `openclaw_config must not set more than ${maxValues} values.`)
    if (key.length > maxKeyCharacters) throw refuse(key, `is a key of more than ${maxKeyCharacters} characters.`)
    if (depth > maxDepth && typeof value === 'object' && value !== null) {
      throw new AppError('invalid_openclaw_config', `openclaw_config is nested deeper than ${maxDepth} levels.`)
    }
  }
}

/**
 * Parses `openclaw_config`. Keys of the outermost object are paths with dots, `[0]` and `["a.b"]`. Nested keys are
 * literal. A caller may mix both. null removes a default of Chowder. `agent.system_prompt` is Chowder's own key. The
 * gateway validates all others. Throws AppError `invalid`, which names the path, for one that is malformed, protected,
 * set twice, or beyond the limits.
 */
export function parseOverrides(config: Record<string, unknown>): Overrides {
  checkSize(config)
  if (Buffer.byteLength(JSON.stringify(config)) > maxBytes) {
    throw new AppError('invalid_openclaw_config', `openclaw_config must not be larger than ${maxBytes / 1024} KiB.`)
  }
  const tree: Record<string, unknown> = {}
  let systemPrompt: string | null = null
  for (const key of Object.keys(config)) {
    for (const [path, value] of leaves(parsePath(key), config[key])) setAtPath(tree, path, value)
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
