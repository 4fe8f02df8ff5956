import { readFileSync } from 'node:fs'
import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import { closestWord } from './closest.ts'

const httpUrl = (description: string) =>
  Type.String({
    pattern: '^https?://[^\\s]+$',
    rule: 'must be a URL that begins with http:// or https://',
    description,
  })

const price = (tier: string) =>
  Type.String({
    pattern: '^\\S+$',
    rule: 'must be the id of a price, such as price_1A2b3C',
    description: `id of the Stripe price of one instance on \`${tier}\`; required with \`STRIPE_SECRET_KEY\``,
  })

const limit = (defaultValue: number, description: string) =>
  Type.Integer({
    default: defaultValue,
    minimum: 0,
    maximum: 1_000_000,
    description: `${description}; \`0\`: no limit`,
  })

/** All environment variables of Chowder. No other file reads process.env. */
export const Env = Type.Object({
  HOST: Type.String({ default: '127.0.0.1', minLength: 1, description: 'address that the API listens on' }),
  PORT: Type.Integer({ default: 8080, minimum: 0, maximum: 65535, description: 'port that the API listens on' }),
  CHOWDER_DATA_DIR: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'embedded database, releases, local sandboxes, generated secret key',
    }),
  ),
  DATABASE_URL: Type.Optional(
    Type.String({
      pattern: '^postgres(ql)?://',
      rule: 'must begin with postgres:// or postgresql://',
      description: 'PostgreSQL 14 or newer',
    }),
  ),
  REDIS_URL: Type.Optional(
    Type.String({
      pattern: '^rediss?://',
      rule: 'must begin with redis:// or rediss://',
      description: 'Redis 6.2 or newer, or Valkey',
    }),
  ),
  CHOWDER_ROLE: Type.Union([Type.Literal('all'), Type.Literal('api'), Type.Literal('worker')], {
    default: 'all',
    description: 'the role of this process: `all`, `api` or `worker`; an argument on the command line overrides it',
  }),
  CHOWDER_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^[A-Za-z0-9+/]{43}=$',
      rule: 'must be 32 bytes in base64: make one with `openssl rand -base64 32`',
      description:
        'the key that seals stored secrets, 32 bytes in base64; generated with the embedded database, required with `DATABASE_URL`',
    }),
  ),
  SANDBOX_DRIVER: Type.Union([Type.Literal('local'), Type.Literal('docker')], {
    default: 'local',
    description: 'how agents run: as `local` processes of this host, or as `docker` containers',
  }),
  DOCKER_HOST: Type.String({
    default: 'unix:///var/run/docker.sock',
    minLength: 1,
    description: 'address of dockerd: `unix:///path` or `tcp://host:port`',
  }),
  DOCKER_GATEWAY_ADDRESS: Type.Union([Type.Literal('published'), Type.Literal('network')], {
    default: 'published',
    description:
      'address of gateways in containers: `published` on this host’s loopback, or their `network` address for a control plane in a container of `DOCKER_NETWORK`',
  }),
  DOCKER_NETWORK: Type.String({
    default: 'chowder-agents',
    pattern: '^[a-z0-9][a-z0-9-]{0,14}$',
    rule: 'must be 1 to 15 lower-case letters, digits and hyphens, as it names a bridge',
    description: 'network of the agents, created if it is missing, and name of its bridge',
  }),
  DOCKER_BUILD_NETWORK: Type.String({
    default: 'default',
    minLength: 1,
    description: 'network for the build of agents’ images, as of `docker build --network`',
  }),
  DOCKER_EXTRA_CA_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'additional certificates in PEM that image builds and agents trust',
    }),
  ),
  DOCKER_PROXY_DIR: Type.String({
    default: '/run/docker-proxy',
    minLength: 1,
    description: 'folder of the Docker proxy’s sockets, `api/docker.sock` and `worker/docker.sock`',
  }),
  CHOWDER_PUBLIC_URL: Type.Optional(httpUrl('URL of the API for clients')),
  CHOWDER_DEFAULT_TIER: Type.Optional(
    Type.Union([Type.Literal('shrimp'), Type.Literal('crab'), Type.Literal('lobster'), Type.Literal('whale')], {
      description:
        'how many agents a new organization may have: `shrimp` 1, `crab` 10, `lobster` 500, `whale` any number; ' +
        'by default `shrimp` with Stripe’s settings, else `whale`',
    }),
  ),
  ANTHROPIC_BASE_URL: Type.Optional(httpUrl('URL of Anthropic’s API, without `/v1`')),
  OPENAI_BASE_URL: Type.Optional(httpUrl('URL of OpenAI’s API, without `/v1`')),
  GEMINI_BASE_URL: Type.Optional(httpUrl('URL of Gemini’s API, without `/v1beta`')),
  CHOWDER_MODELS_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'JSON file that adds models to the table of the release, or changes them: see [models](models.md)',
    }),
  ),
  CLAWHUB_REGISTRY: Type.Optional(httpUrl('URL of the skill registry')),
  STRIPE_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^(sk|rk)_\\S+$',
      rule: 'must begin with sk_ or rk_',
      description: 'Stripe’s secret key; billing is off without it',
    }),
  ),
  STRIPE_WEBHOOK_SECRET: Type.Optional(
    Type.String({
      pattern: '^whsec_\\S+$',
      rule: 'must begin with whsec_',
      description: 'secret that signs Stripe’s requests to `/v1/webhooks/stripe`; required with `STRIPE_SECRET_KEY`',
    }),
  ),
  STRIPE_PRICE_CRAB: Type.Optional(price('crab')),
  STRIPE_PRICE_LOBSTER: Type.Optional(price('lobster')),
  STRIPE_API_URL: Type.Optional(
    Type.String({
      pattern: '^https?://[^/\\s]+/?$',
      rule: 'must be a URL without a path that begins with http:// or https://',
      description: 'URL of Stripe’s API, for a proxy or a test server',
    }),
  ),
  BILLING_RETURN_URL: Type.Optional(httpUrl('URL to which Stripe’s pages return')),
  FILES_MAX_BYTES: Type.Integer({
    default: 2 * 1024 ** 3,
    minimum: 1,
    maximum: Number.MAX_SAFE_INTEGER,
    description: 'greatest size of an uploaded file, in bytes',
  }),
  WORKER_CONCURRENCY: Type.Integer({
    default: 8,
    minimum: 1,
    maximum: 256,
    description:
      'concurrent reconciles of one organization in one worker, which reserves one more for other organizations',
  }),
  RATE_LIMIT_PER_MINUTE: limit(6000, 'requests per minute with one key'),
  SIGNUP_LIMIT_PER_HOUR: limit(100, 'new organizations per hour from one address'),
  FAILED_AUTH_LIMIT_PER_MINUTE: limit(60, 'requests per minute without a valid key from one address'),
  TRUST_PROXY: Type.Integer({
    default: 0,
    minimum: 0,
    maximum: 10,
    description: 'number of proxies in front of Chowder, whose `X-Forwarded-For` names the client',
  }),
  METRICS_PORT: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 65535,
      description: 'port of Prometheus’ `/metrics`, another one for each process; disabled without it',
    }),
  ),
  METRICS_HOST: Type.String({
    default: '127.0.0.1',
    minLength: 1,
    description: 'address that `/metrics` listens on; it requires no key',
  }),
  LOG_LEVEL: Type.Union(
    (['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const).map((level) => Type.Literal(level)),
    { default: 'info', description: 'the least important lines of the log that are written' },
  ),
  LOG_FORMAT: Type.Optional(
    Type.Union([Type.Literal('json'), Type.Literal('pretty')], {
      description: 'how lines of the log look: `json` for programs, `pretty` for people',
    }),
  ),
})

export type Config = Readonly<Static<typeof Env>>

type Rule = TSchema & { anyOf?: { const: string }[]; minimum?: number; maximum?: number; rule?: string }

/** The rule of a variable as a sentence for error messages, without the variable's value. */
function rule(name: string): string {
  const schema: Rule = Env.properties[name as keyof typeof Env.properties]
  if (schema.const) return `must be ${schema.const}`
  if (schema.anyOf) return `must be one of ${schema.anyOf.map((choice) => choice.const).join(', ')}`
  if (schema.minimum !== undefined) return `must be a whole number from ${schema.minimum} to ${schema.maximum}`
  return schema.rule ?? 'must not be empty'
}

/** Converts only whole numbers: a conversion that rounds would accept `80.5` as a port. */
const toNumber = ([name, text]: [string, string | undefined]): [string, unknown] => {
  const { type } = Env.properties[name as keyof typeof Env.properties] ?? {}
  return [name, type === 'integer' && /^\d+$/.test(text ?? '') ? Number(text) : text]
}

/** The environment is invalid. The message has one line for each variable, with its name and without its value. */
export class BadEnvironment extends Error {
  override name = 'BadEnvironment'
}

const stripeTogether = ['STRIPE_SECRET_KEY', 'STRIPE_WEBHOOK_SECRET', 'STRIPE_PRICE_CRAB', 'STRIPE_PRICE_LOBSTER']

/** Either all of Stripe's settings are required or none: an incomplete billing would charge wrongly. */
function stripeFaults(set: NodeJS.ProcessEnv): string[] {
  const missing = stripeTogether.filter((name) => !set[name])
  if (missing.length === stripeTogether.length) return []
  const lines = missing.map((name) => `${name} is required with Stripe's other settings: ${stripeTogether.join(', ')}`)
  if (set.STRIPE_PRICE_CRAB && set.STRIPE_PRICE_CRAB === set.STRIPE_PRICE_LOBSTER) {
    lines.push('STRIPE_PRICE_LOBSTER must be another price than STRIPE_PRICE_CRAB')
  }
  return lines
}

/** For each of these, `<name>_FILE` may name a file with the value, because commands such as `ps` show environments. */
export const secretVariables = [
  'DATABASE_URL',
  'REDIS_URL',
  'CHOWDER_SECRET_KEY',
  'STRIPE_SECRET_KEY',
  'STRIPE_WEBHOOK_SECRET',
] as const

/** Sets each variable whose `<name>_FILE` is set to the file's trimmed content. Returns the faults. */
function readSecretFiles(set: NodeJS.ProcessEnv): string[] {
  const faults: string[] = []
  for (const name of secretVariables) {
    const path = set[`${name}_FILE`]
    if (path === undefined) continue
    if (set[name] !== undefined) faults.push(`${name} and ${name}_FILE are both set: set one of them`)
    try {
      const text = readFileSync(path, 'utf8').trim()
      if (text === '') faults.push(`${name}_FILE names ${path}, which is empty`)
      else set[name] = text
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      const why = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`
      faults.push(`${name}_FILE names ${path}, which ${why}. Correct the path, or make the file readable for Chowder`)
    }
  }
  return faults
}

/** Placeholders for passwords in examples. */
const placeholder = /^(<.*>|(change|replace)[-_ ]?me|(your[-_ ]?)?password|placeholder|secret|example)$/i

function placeholderFaults({ DATABASE_URL = '', CHOWDER_SECRET_KEY = '' }: NodeJS.ProcessEnv): string[] {
  const faults: string[] = []
  const password = /^\w+:\/\/[^:@/]*:([^@]*)@/.exec(DATABASE_URL)?.[1] ?? ''
  if (placeholder.test(password)) {
    faults.push('DATABASE_URL has a placeholder as its password: set the real password')
  }
  if (/^A{42}[A-Za-z0-9+/]=$/.test(CHOWDER_SECRET_KEY)) {
    faults.push('CHOWDER_SECRET_KEY is a placeholder: make one with `openssl rand -base64 32` and keep it')
  }
  return faults
}

/**
 * Parses the environment. An empty variable counts as unset, because docker-compose and .env files set empty variables.
 * Throws BadEnvironment, which names all invalid variables.
 */
export function loadConfig(env: NodeJS.ProcessEnv = process.env): Config {
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''))
  const fileFaults = readSecretFiles(set)
  const candidate = Value.Clean(Env, Value.Default(Env, Object.fromEntries(Object.entries(set).map(toNumber))))
  const faults = new Set([...Value.Errors(Env, candidate)].map((fault) => fault.path.split('/')[1] ?? ''))
  const lines = [...faults].map((name) => `${name} ${rule(name)}`)
  if (set.DATABASE_URL && !set.CHOWDER_SECRET_KEY) {
    lines.push('CHOWDER_SECRET_KEY is required with DATABASE_URL: make one with `openssl rand -base64 32` and keep it')
  }
  lines.push(...fileFaults, ...placeholderFaults(set), ...stripeFaults(set))
  if (lines.length > 0) throw new BadEnvironment(`bad environment:\n  ${lines.join('\n  ')}`)
  return Object.freeze(candidate as Config)
}

/** Variables that docker-compose.yml reads beside this program's. CHOWDER_PORT there is PORT here. */
const composeVariables = ['CHOWDER_VERSION', 'CHOWDER_COMMIT', 'CHOWDER_DOMAIN']
/** Of shorter names, such as PORT, too many others are one letter away. */
const minLetters = 8

/**
 * A sentence about each variable that is probably meant as a setting and is none: every unknown name that begins with
 * `CHOWDER_`, and other names that are one letter away from a setting.
 */
export function unknownSettings(env: NodeJS.ProcessEnv = process.env): string[] {
  const known = [...Object.keys(Env.properties), ...secretVariables.map((name) => `${name}_FILE`)]
  const sentences: string[] = []
  for (const name of Object.keys(env).sort()) {
    if (known.includes(name) || composeVariables.includes(name)) continue
    const isOurs = name.startsWith('CHOWDER_')
    if (!isOurs && name.length < minLetters) continue
    const meant = isOurs
      ? (closestWord(name, known) ?? closestWord(name.slice('CHOWDER_'.length), known))
      : closestWord(name, known, 1)
    if (meant) sentences.push(`${name} is no setting of Chowder: did you mean ${meant}?`)
    else if (isOurs) sentences.push(`${name} is no setting of Chowder. docs/settings.md has them all.`)
  }
  return sentences
}
