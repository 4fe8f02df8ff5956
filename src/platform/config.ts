import { readFileSync } from 'node:fs'
import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'

const httpUrl = (description: string) => Type.String({ pattern: '^https?://[^\\s]+$', description })

const price = (tier: string) =>
  Type.String({
    pattern: '^\\S+$',
    description: `id of the Stripe price of one instance on \`${tier}\`; required with \`STRIPE_SECRET_KEY\``,
  })

const limit = (fallback: number, what: string) =>
  Type.Integer({ default: fallback, minimum: 0, maximum: 1_000_000, description: `${what}; \`0\`: no limit` })

/** Every environment variable Chowder reads. Nothing else in the code base touches process.env. */
export const Env = Type.Object({
  HOST: Type.String({ default: '127.0.0.1', minLength: 1, description: 'address the API listens on' }),
  PORT: Type.Integer({ default: 8080, minimum: 0, maximum: 65535, description: 'port the API listens on' }),
  CHOWDER_DATA_DIR: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'embedded database, releases, local sandboxes, generated secret key',
    }),
  ),
  DATABASE_URL: Type.Optional(Type.String({ pattern: '^postgres(ql)?://', description: 'PostgreSQL 14 or newer' })),
  REDIS_URL: Type.Optional(
    Type.String({
      pattern: '^rediss?://',
      description: 'Redis 6.2 or newer, or Valkey',
    }),
  ),
  CHOWDER_ROLE: Type.Union([Type.Literal('all'), Type.Literal('api'), Type.Literal('worker')], {
    default: 'all',
    description: 'what this process does: `all`, `api` or `worker`; an argument on the command line wins',
  }),
  CHOWDER_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^[A-Za-z0-9+/]{43}=$',
      description:
        '32 bytes in base64 that seal stored secrets; generated with the embedded database, required with `DATABASE_URL`',
    }),
  ),
  SANDBOX_DRIVER: Type.Union([Type.Literal('local'), Type.Literal('docker')], {
    default: 'local',
    description: 'where agents run: `local` processes of this host, or `docker` containers',
  }),
  DOCKER_HOST: Type.String({
    default: 'unix:///var/run/docker.sock',
    minLength: 1,
    description: 'where dockerd listens: `unix:///path` or `tcp://host:port`',
  }),
  DOCKER_GATEWAY_ADDRESS: Type.Union([Type.Literal('published'), Type.Literal('network')], {
    default: 'published',
    description:
      'how gateways in containers are reached: `published` on this host’s loopback, or by `network` address, from a control plane in a container of `DOCKER_NETWORK`',
  }),
  DOCKER_NETWORK: Type.String({
    default: 'chowder-agents',
    pattern: '^[a-z0-9][a-z0-9-]{0,14}$',
    description: 'the agents’ own network, made when it is missing, and the name of its bridge',
  }),
  DOCKER_BUILD_NETWORK: Type.String({
    default: 'default',
    minLength: 1,
    description: 'the network that agents’ images are built in, as of `docker build --network`',
  }),
  DOCKER_EXTRA_CA_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'certificates in PEM that the building of images and the agents trust besides the usual',
    }),
  ),
  DOCKER_PROXY_DIR: Type.String({
    default: '/run/docker-proxy',
    minLength: 1,
    description: 'where the Docker proxy has its sockets, `api/docker.sock` and `worker/docker.sock`',
  }),
  CHOWDER_PUBLIC_URL: Type.Optional(httpUrl('how clients reach the API')),
  CHOWDER_DEFAULT_TIER: Type.Union(
    [Type.Literal('shrimp'), Type.Literal('crab'), Type.Literal('lobster'), Type.Literal('whale')],
    { default: 'shrimp', description: 'tier of a new organization; whoever hosts for themselves sets `whale`' },
  ),
  ANTHROPIC_BASE_URL: Type.Optional(httpUrl('where Anthropic calls go: the host, without `/v1`')),
  OPENAI_BASE_URL: Type.Optional(httpUrl('where OpenAI calls go: the host, without `/v1`')),
  GEMINI_BASE_URL: Type.Optional(httpUrl('where Gemini calls go: the host, without `/v1beta`')),
  CLAWHUB_REGISTRY: Type.Optional(httpUrl('where skills come from')),
  STRIPE_SECRET_KEY: Type.Optional(
    Type.String({ pattern: '^(sk|rk)_\\S+$', description: 'Stripe’s secret key; billing is off without it' }),
  ),
  STRIPE_WEBHOOK_SECRET: Type.Optional(
    Type.String({
      pattern: '^whsec_\\S+$',
      description: 'signs what Stripe sends to `/v1/webhooks/stripe`; required with `STRIPE_SECRET_KEY`',
    }),
  ),
  STRIPE_PRICE_CRAB: Type.Optional(price('crab')),
  STRIPE_PRICE_LOBSTER: Type.Optional(price('lobster')),
  STRIPE_API_URL: Type.Optional(
    Type.String({
      pattern: '^https?://[^/\\s]+/?$',
      description: 'where Stripe’s API is, for a proxy or a test server',
    }),
  ),
  BILLING_RETURN_URL: Type.Optional(httpUrl('where Stripe’s pages lead back to')),
  FILES_MAX_BYTES: Type.Integer({
    default: 2 * 1024 ** 3,
    minimum: 1,
    maximum: Number.MAX_SAFE_INTEGER,
    description: 'largest file that may be uploaded',
  }),
  WORKER_CONCURRENCY: Type.Integer({
    default: 8,
    minimum: 1,
    maximum: 256,
    description: 'reconciles of one organization at once in one worker, which has one more for the others',
  }),
  RATE_LIMIT_PER_MINUTE: limit(6000, 'requests of one key a minute'),
  SIGNUP_LIMIT_PER_HOUR: limit(100, 'new organizations from one address an hour'),
  FAILED_AUTH_LIMIT_PER_MINUTE: limit(60, 'requests without a good key from one address a minute'),
  TRUST_PROXY: Type.Integer({
    default: 0,
    minimum: 0,
    maximum: 10,
    description: 'how many proxies stand before Chowder, whose `X-Forwarded-For` names the client',
  }),
  METRICS_PORT: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 65535,
      description: 'port of Prometheus’ `/metrics`, each process its own; there is none without it',
    }),
  ),
  METRICS_HOST: Type.String({
    default: '127.0.0.1',
    minLength: 1,
    description: 'address of `/metrics`, which asks for no key',
  }),
  LOG_LEVEL: Type.Union(
    (['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const).map((level) => Type.Literal(level)),
    { default: 'info', description: 'pino level; JSON unless on a terminal' },
  ),
})

export type Config = Readonly<Static<typeof Env>>

type Rule = TSchema & { anyOf?: { const: string }[]; minimum?: number; maximum?: number; pattern?: string }

/** What a variable must be, in words; never the value it has. */
function rule(name: string): string {
  const schema: Rule = Env.properties[name as keyof typeof Env.properties]
  if (schema.const) return `must be ${schema.const}`
  if (schema.anyOf) return `must be one of ${schema.anyOf.map((choice) => choice.const).join(', ')}`
  if (schema.minimum !== undefined) return `must be a whole number from ${schema.minimum} to ${schema.maximum}`
  if (name === 'CHOWDER_SECRET_KEY') return 'must be 32 bytes in base64: make one with `openssl rand -base64 32`'
  if (schema.pattern) return `must match ${schema.pattern}`
  return 'must not be empty'
}

/** Only whole numbers become numbers: a conversion that rounds would take `80.5` for a port. */
const toNumber = ([name, text]: [string, string | undefined]): [string, unknown] => {
  const { type } = Env.properties[name as keyof typeof Env.properties] ?? {}
  return [name, type === 'integer' && /^\d+$/.test(text ?? '') ? Number(text) : text]
}

/** A bad environment: one line a variable, by name, without values. */
export class BadEnvironment extends Error {
  override name = 'BadEnvironment'
}

const stripeTogether = ['STRIPE_SECRET_KEY', 'STRIPE_WEBHOOK_SECRET', 'STRIPE_PRICE_CRAB', 'STRIPE_PRICE_LOBSTER']

/** Half of a billing would take money and give nothing, or the other way round: all of Stripe's settings, or none. */
function stripeFaults(set: NodeJS.ProcessEnv): string[] {
  const missing = stripeTogether.filter((name) => !set[name])
  if (missing.length === stripeTogether.length) return []
  const lines = missing.map((name) => `${name} is required with Stripe's other settings: ${stripeTogether.join(', ')}`)
  if (set.STRIPE_PRICE_CRAB && set.STRIPE_PRICE_CRAB === set.STRIPE_PRICE_LOBSTER) {
    lines.push('STRIPE_PRICE_LOBSTER must be another price than STRIPE_PRICE_CRAB')
  }
  return lines
}

/** Each may come as `<name>_FILE`, the path of a file that holds it: an environment is shown by more than one command. */
export const secretVariables = [
  'DATABASE_URL',
  'REDIS_URL',
  'CHOWDER_SECRET_KEY',
  'STRIPE_SECRET_KEY',
  'STRIPE_WEBHOOK_SECRET',
] as const

/** Replaces `<name>_FILE` by what the file holds, without the line's end. Answers what is wrong, a line each. */
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
      faults.push(`${name}_FILE names ${path}, which cannot be read: ${(error as NodeJS.ErrnoException).code}`)
    }
  }
  return faults
}

/** What examples hold where a secret belongs. */
const placeholder = /^(<.*>|(change|replace)[-_ ]?me|(your[-_ ]?)?password|placeholder|secret|example)$/i

function placeholderFaults({ DATABASE_URL = '', CHOWDER_SECRET_KEY = '' }: NodeJS.ProcessEnv): string[] {
  const faults: string[] = []
  const password = /^\w+:\/\/[^:@/]*:([^@]*)@/.exec(DATABASE_URL)?.[1] ?? ''
  if (placeholder.test(password)) {
    faults.push('DATABASE_URL has a placeholder for its password: set the real one')
  }
  if (/^A{42}[A-Za-z0-9+/]=$/.test(CHOWDER_SECRET_KEY)) {
    faults.push('CHOWDER_SECRET_KEY is a placeholder: make one with `openssl rand -base64 32` and keep it')
  }
  return faults
}

/**
 * Parses the environment once. An empty variable counts as unset, as docker-compose and .env files write them.
 * Throws BadEnvironment naming every bad variable at once.
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
