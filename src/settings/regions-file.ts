import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { type TSchema, Type } from '@sinclair/typebox'
import { Value, type ValueError, ValueErrorType } from '@sinclair/typebox/value'
import { parseDocument } from 'yaml'
import { closestWord } from '#platform/closest.ts'
import { BadEnvironment, type Config, ruleOf } from './config.ts'
import { Env, regionName } from './env.ts'
import { readResourceSettings } from './resources.ts'

/** A region as the operator describes it. */
export interface RegionSettings {
  name: string
  isDefault: boolean
  /** The settings of the region: those of the environment, unless the file overrides them. */
  config: Config
  /** The folder of its local sandboxes; undefined for the data folder. */
  storage: string | undefined
}

type Variable = keyof typeof Env.properties
type Variables = Record<string, Variable>
type Driver = Config['SANDBOX_DRIVER']

/** The fields of each driver, each with the variable that it replaces and whose rule applies. */
const fieldsOf: Record<Driver, Variables> = {
  local: { isolation: 'LOCAL_ISOLATION' },
  docker: {
    host: 'DOCKER_HOST',
    cert_path: 'DOCKER_CERT_PATH',
    publish_address: 'DOCKER_PUBLISH_ADDRESS',
    build_network: 'DOCKER_BUILD_NETWORK',
    node_image: 'DOCKER_NODE_IMAGE',
    extra_ca_file: 'DOCKER_EXTRA_CA_FILE',
  },
  kubernetes: {
    kubeconfig: 'KUBECONFIG',
    namespace: 'KUBERNETES_NAMESPACE',
    image: 'KUBERNETES_IMAGE',
    storage_class: 'KUBERNETES_STORAGE_CLASS',
    request_percent: 'KUBERNETES_REQUEST_PERCENT',
    runtime_class: 'KUBERNETES_RUNTIME_CLASS',
  },
}
const commonFields: Variables = { relay_url: 'RELAY_URL' }
const modelFields: Variables = {
  anthropic: 'ANTHROPIC_BASE_URL',
  openai: 'OPENAI_BASE_URL',
  gemini: 'GEMINI_BASE_URL',
}

const fields = (properties: Record<string, TSchema>, additionalProperties = false) =>
  Type.Partial(Type.Object(properties, { additionalProperties, rule: 'must have fields, each with its value' }))

const schemasOf = (variables: Variables): Record<string, TSchema> =>
  Object.fromEntries(Object.entries(variables).map(([field, variable]) => [field, Env.properties[variable]]))

const regionSchema = (driver: Driver) =>
  fields({
    driver: Type.Literal(driver),
    ...schemasOf({ ...commonFields, ...fieldsOf[driver] }),
    default: Type.Boolean({ rule: 'must be true or false' }),
    ...(driver === 'local' && {
      storage: Type.String({ pattern: '^/', rule: 'must be the absolute path of a folder' }),
    }),
    resources: Type.Record(Type.String(), Type.Number({ rule: 'must be a number' }), {
      rule: Env.properties.AGENT_RESOURCES.rule,
    }),
    egress: fields({
      allowed_hosts: Type.Array(Type.String({ pattern: '^[^\\s,]+$', rule: 'must be a host such as 10.0.0.0/8:443' }), {
        minItems: 1,
        rule: 'must be a list of hosts such as 10.0.0.0/8:443',
      }),
    }),
    models: fields(schemasOf(modelFields)),
  })

const regionSchemas = {
  local: regionSchema('local'),
  docker: regionSchema('docker'),
  kubernetes: regionSchema('kubernetes'),
}

/** The file without the fields of regions, which depend on the driver. */
const fileSchema = Type.Object(
  {
    regions: Type.Record(Type.String({ pattern: `^${regionName}$` }), fields({}, true), {
      additionalProperties: false,
      minProperties: 1,
      rule: 'must have the name of a region, and its fields below',
    }),
  },
  { additionalProperties: false, rule: 'must have the field regions' },
)

interface RegionFields extends Record<string, unknown> {
  driver: Driver
  default?: boolean
  storage?: string
  resources?: Record<string, number>
  egress?: { allowed_hosts?: string[] }
  models?: Record<string, string>
}

/** A fault as a sentence with the field and its rule, without the value: that may be a secret. */
function sentenceOf({ type, path, schema }: ValueError, parent: string): string {
  const names = [...parent.split('.'), ...path.split('/')].filter((name) => name !== '')
  const place = names.join('.') || 'the file'
  if (type !== ValueErrorType.ObjectAdditionalProperties) return `${place} ${ruleOf(schema)}`
  if (!schema.properties) return `${place} is not the name of a region: 1 to 63 lower-case letters, digits and hyphens`
  const known = Object.keys(schema.properties)
  const of = schema.properties.driver ? ` of the driver ${schema.properties.driver.const}` : ''
  const meant = closestWord(names.at(-1) as string, known)
  return `${place} is not a known field${of}; ${meant ? `did you mean ${meant}` : `known: ${known.join(', ')}`}`
}

const faultsOf = (schema: TSchema, value: unknown, parent = ''): string[] => [
  ...new Set([...Value.Errors(schema, value)].map((fault) => sentenceOf(fault, parent))),
]

/** The variables that the fields of an object replace. */
const variablesIn = (object: Record<string, unknown>, variables: Variables): Partial<Config> =>
  Object.fromEntries(
    Object.entries(variables).flatMap(([field, variable]) => (field in object ? [[variable, object[field]]] : [])),
  )

/** The settings of one region. Adds its faults to `faults`. */
function readRegion(name: string, given: RegionFields, base: Config, faults: string[]): RegionSettings {
  const path = `regions.${name}`
  const schema = Object.hasOwn(regionSchemas, given.driver) ? regionSchemas[given.driver] : null
  if (!schema) faults.push(`${path}.driver ${ruleOf(Env.properties.SANDBOX_DRIVER)}`)
  const found = schema ? faultsOf(schema, given, path) : []
  faults.push(...found)
  if (!schema || found.length > 0) return { name, isDefault: given.default === true, config: base, storage: undefined }
  const { driver, resources, egress, models = {}, storage } = given
  const limits = resources && Object.entries(resources).map(([limit, number]) => `${limit}=${number}`)
  const config = Object.freeze({
    ...base,
    SANDBOX_DRIVER: driver,
    ...variablesIn(given, { ...commonFields, ...fieldsOf[driver] }),
    ...variablesIn(models, modelFields),
    ...(egress?.allowed_hosts && { EGRESS_ALLOWED_HOSTS: egress.allowed_hosts.join(',') }),
    ...(limits && { AGENT_RESOURCES: limits.join(',') }),
  })
  if (!readResourceSettings(config.AGENT_RESOURCES)) {
    faults.push(`${path}.resources ${ruleOf(Env.properties.AGENT_RESOURCES)}`)
  }
  return { name, isDefault: given.default === true, config, storage: storage && resolve(storage) }
}

function defaultFaults(regions: readonly RegionSettings[]): string[] {
  const defaults = regions.filter(({ isDefault }) => isDefault)
  if (defaults.length > 1) return [`regions.${defaults[1]?.name}.default must be true in one region only`]
  if (defaults.length === 1 || regions.length < 2) return []
  return [`regions needs one region with default: true, of ${regions.map(({ name }) => name).join(', ')}`]
}

function read(text: string, base: Config): { regions: RegionSettings[]; faults: string[] } {
  const document = parseDocument(text)
  const syntax = document.errors.map(({ code, linePos }) => `line ${linePos?.[0].line}: this is not YAML (${code})`)
  if (syntax.length > 0) return { regions: [], faults: syntax }
  const file = document.toJS()
  const faults = faultsOf(fileSchema, file)
  if (faults.length > 0) return { regions: [], faults }
  const named = Object.entries<RegionFields>(file.regions)
  const regions = named.map(([name, given]) => readRegion(name, given, base, faults))
  return { regions, faults: faults.length > 0 ? faults : defaultFaults(regions) }
}

/**
 * Reads CHOWDER_CONFIG_FILE. Throws BadEnvironment with all faults, each with its field and its rule, and without the
 * value.
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
