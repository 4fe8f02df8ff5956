import { readFileSync } from 'node:fs'
import { isAbsolute, resolve } from 'node:path'
import { Value } from '@sinclair/typebox/value'
import { isMap, isScalar, isSeq, LineCounter, type Node, type ParsedNode, parseDocument } from 'yaml'
import { closestWord } from '#platform/closest.ts'
import { BadEnvironment, type Config, rule, toNumber } from './config.ts'
import { Env, regionName } from './env.ts'
import { readResourceSettings } from './resources.ts'

/** What the operator says of a region. */
export interface RegionSettings {
  name: string
  isDefault: boolean
  /** The settings that hold there: those of the environment, unless the file says otherwise. */
  config: Config
  /** The folder of its local sandboxes; undefined for the data folder. */
  storage: string | undefined
}

type Variable = keyof typeof Env.properties

/** The fields of a region, each with the variable whose rule it has, and whose place it takes there. */
const fields: Record<
  string,
  { variable: Variable; driver?: 'local' | 'docker' | 'kubernetes'; holds?: 'list' | 'limits' }
> = {
  driver: { variable: 'SANDBOX_DRIVER' },
  isolation: { variable: 'LOCAL_ISOLATION', driver: 'local' },
  host: { variable: 'DOCKER_HOST', driver: 'docker' },
  cert_path: { variable: 'DOCKER_CERT_PATH', driver: 'docker' },
  gateway_address: { variable: 'DOCKER_GATEWAY_ADDRESS', driver: 'docker' },
  publish_address: { variable: 'DOCKER_PUBLISH_ADDRESS', driver: 'docker' },
  build_network: { variable: 'DOCKER_BUILD_NETWORK', driver: 'docker' },
  node_image: { variable: 'DOCKER_NODE_IMAGE', driver: 'docker' },
  extra_ca_file: { variable: 'DOCKER_EXTRA_CA_FILE', driver: 'docker' },
  kubeconfig: { variable: 'KUBECONFIG', driver: 'kubernetes' },
  namespace: { variable: 'KUBERNETES_NAMESPACE', driver: 'kubernetes' },
  image: { variable: 'KUBERNETES_IMAGE', driver: 'kubernetes' },
  storage_class: { variable: 'KUBERNETES_STORAGE_CLASS', driver: 'kubernetes' },
  request_percent: { variable: 'KUBERNETES_REQUEST_PERCENT', driver: 'kubernetes' },
  runtime_class: { variable: 'KUBERNETES_RUNTIME_CLASS', driver: 'kubernetes' },
  relay_host: { variable: 'RELAY_HOST' },
  relay_url: { variable: 'RELAY_URL' },
  resources: { variable: 'AGENT_RESOURCES', holds: 'limits' },
  'egress.allowed_hosts': { variable: 'EGRESS_ALLOWED_HOSTS', holds: 'list' },
  'models.anthropic': { variable: 'ANTHROPIC_BASE_URL' },
  'models.openai': { variable: 'OPENAI_BASE_URL' },
  'models.gemini': { variable: 'GEMINI_BASE_URL' },
}
const groups = ['egress', 'models']
const ownFields = ['default', 'storage']

const isName = new RegExp(`^${regionName}$`)

/** The fault of one place in the file, without what stands there: that may be a secret. */
type Complain = (at: Node | null | undefined, path: string, rule: string) => void

const textOf = (node: unknown): string | null =>
  isScalar(node) && ['string', 'number'].includes(typeof node.value) && node.value !== '' ? String(node.value) : null

/** The text that the variable of a field has for what stands in the file; null for anything else than its kind. */
function variableText(node: ParsedNode | null, holds: 'list' | 'limits' | undefined): string | null {
  if (holds === 'list') {
    if (!isSeq(node)) return null
    const items = node.items.map(textOf)
    return items.includes(null) ? null : items.join(',')
  }
  if (holds === 'limits') {
    if (!isMap(node)) return null
    const items = node.items.map(({ key, value }) => `${textOf(key)}=${textOf(value)}`)
    return items.join(',')
  }
  return textOf(node)
}

const unknownField = (name: string, known: readonly string[]) => {
  const meant = closestWord(name, known)
  return `is not a known field; ${meant ? `did you mean ${meant}` : `known: ${known.join(', ')}`}`
}

/** The fields of a map by their paths, those of groups too. */
function* entriesOf(
  node: ParsedNode | null,
  complain: Complain,
  path: string,
  prefix = '',
): Generator<{
  name: string
  at: Node
  value: ParsedNode | null
}> {
  if (!isMap(node)) return complain(node, path, 'must have fields, each with its value')
  for (const { key, value } of node.items) {
    const name = `${prefix}${String(isScalar(key) ? key.value : key)}`
    if (prefix === '' && groups.includes(name))
      yield* entriesOf(value as ParsedNode, complain, `${path}.${name}`, `${name}.`)
    else yield { name, at: key as Node, value: value as ParsedNode | null }
  }
}

function readRegion(name: string, node: ParsedNode | null, base: Config, complain: Complain): RegionSettings {
  const path = `regions.${name}`
  const region = { isDefault: false, storage: undefined as string | undefined }
  const set: Partial<Record<Variable, unknown>> = {}
  const places = new Map<string, Node>()
  for (const { name: field, at, value } of entriesOf(node, complain, path)) {
    const where = `${path}.${field}`
    places.set(field, at)
    if (field === 'default') {
      if (!isScalar(value) || typeof value.value !== 'boolean') complain(at, where, 'must be true or false')
      else region.isDefault = value.value
      continue
    }
    if (field === 'storage') {
      const folder = textOf(value)
      if (folder === null || !isAbsolute(folder)) complain(at, where, 'must be the absolute path of a folder')
      else region.storage = resolve(folder)
      continue
    }
    const known = fields[field]
    if (!known) {
      complain(at, where, unknownField(field, [...ownFields, ...Object.keys(fields)]))
      continue
    }
    const { variable, holds } = known
    const text = variableText(value, holds)
    const [, converted] = toNumber([variable, text ?? undefined])
    if (text === null || !Value.Check(Env.properties[variable], converted)) complain(at, where, rule(variable))
    else set[variable] = converted
  }
  const config: Config = Object.freeze({ ...base, ...(set as Partial<Config>) })
  if (!places.has('driver')) complain(node, path, 'needs the field driver: local, docker or kubernetes')
  const { SANDBOX_DRIVER: driver } = config
  for (const [field, at] of places) {
    const needed = field === 'storage' ? 'local' : fields[field]?.driver
    if (needed && needed !== driver) {
      complain(at, `${path}.${field}`, `is for the driver ${needed}: remove it, or set driver to ${needed}`)
    }
  }
  if (!readResourceSettings(config.AGENT_RESOURCES)) {
    complain(places.get('resources') ?? node, `${path}.resources`, rule('AGENT_RESOURCES'))
  }
  return { name, config, ...region }
}

function checkTogether(regions: readonly RegionSettings[], placeOf: (name: string) => Node, complain: Complain): void {
  const defaults = regions.filter(({ isDefault }) => isDefault)
  if (defaults.length > 1) {
    const last = defaults.at(-1) as RegionSettings
    complain(placeOf(last.name), `regions.${last.name}.default`, 'must be true in one region only')
  }
  if (defaults.length === 0 && regions.length > 1) {
    const [first] = regions as [RegionSettings]
    const names = regions.map(({ name }) => name).join(', ')
    complain(placeOf(first.name), 'regions', `needs one region with default: true, of ${names}`)
  }
}

function read(text: string, base: Config): { regions: RegionSettings[]; faults: string[] } {
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines })
  const faults: string[] = []
  const lineOf = (offset: number) => lines.linePos(offset).line
  const complain: Complain = (at, path, sentence) => {
    faults.push(`line ${lineOf(at?.range?.[0] ?? 0)}: ${path} ${sentence}`)
  }
  for (const { pos, code } of document.errors) faults.push(`line ${lineOf(pos[0])}: this is not YAML (${code})`)
  if (faults.length > 0) return { regions: [], faults }

  const root = document.contents
  if (!isMap(root)) return { regions: [], faults: ['line 1: the file needs the field regions'] }
  const regions: RegionSettings[] = []
  const places = new Map<string, Node>()
  for (const { key, value } of root.items) {
    const name = String(isScalar(key) ? key.value : key)
    if (name !== 'regions') {
      complain(key as Node, name, unknownField(name, ['regions']))
      continue
    }
    if (!isMap(value) || value.items.length === 0) {
      complain(key as Node, 'regions', 'must have the name of a region, and its fields below')
      continue
    }
    for (const { key: nameNode, value: node } of value.items) {
      const region = String(isScalar(nameNode) ? nameNode.value : nameNode)
      places.set(region, nameNode as Node)
      if (isName.test(region)) regions.push(readRegion(region, node as ParsedNode | null, base, complain))
      else
        complain(
          nameNode as Node,
          'regions',
          'has a name that is no name: 1 to 63 lower-case letters, digits and hyphens',
        )
    }
  }
  if (!root.has('regions')) complain(root, 'the file', 'needs the field regions')
  if (faults.length === 0) checkTogether(regions, (name) => places.get(name) as Node, complain)
  return { regions, faults }
}

/**
 * Reads CHOWDER_CONFIG_FILE. Throws BadEnvironment, which names all faults, each with its line, its field and its rule,
 * and without what stands there.
 */
export function readRegionsFile(path: string, base: Config): RegionSettings[] {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    const why = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`
    throw new BadEnvironment(`CHOWDER_CONFIG_FILE names ${path}, which ${why}. Correct the path, or make it readable.`)
  }
  const { regions, faults } = read(text, base)
  if (faults.length > 0) throw new BadEnvironment(`bad file ${path} of CHOWDER_CONFIG_FILE:\n  ${faults.join('\n  ')}`)
  const [only] = regions
  return regions.length === 1 && only ? [{ ...only, isDefault: true }] : regions
}
