import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'

const httpUrl = (description: string) => Type.String({ pattern: '^https?://[^\\s]+$', description })

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
  SANDBOX_DRIVER: Type.Union([Type.Literal('local')], { default: 'local', description: 'where agents run: `local`' }),
  CHOWDER_PUBLIC_URL: Type.Optional(httpUrl('how clients reach the API')),
  CHOWDER_DEFAULT_TIER: Type.Union(
    [Type.Literal('shrimp'), Type.Literal('crab'), Type.Literal('lobster'), Type.Literal('whale')],
    { default: 'shrimp', description: 'tier of a new organization; whoever hosts for themselves sets `whale`' },
  ),
  ANTHROPIC_BASE_URL: Type.Optional(httpUrl('where Anthropic calls go: the host, without `/v1`')),
  OPENAI_BASE_URL: Type.Optional(httpUrl('where OpenAI calls go: the host, without `/v1`')),
  GEMINI_BASE_URL: Type.Optional(httpUrl('where Gemini calls go: the host, without `/v1beta`')),
  CLAWHUB_REGISTRY: Type.Optional(httpUrl('where skills come from')),
  WORKER_CONCURRENCY: Type.Integer({
    default: 8,
    minimum: 1,
    maximum: 256,
    description: 'reconciles at once in one worker',
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

/**
 * Parses the environment once. An empty variable counts as unset, as docker-compose and .env files write them.
 * Throws BadEnvironment naming every bad variable at once.
 */
export function loadConfig(env: NodeJS.ProcessEnv = process.env): Config {
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''))
  const candidate = Value.Clean(Env, Value.Default(Env, Object.fromEntries(Object.entries(set).map(toNumber))))
  const faults = new Set([...Value.Errors(Env, candidate)].map((fault) => fault.path.split('/')[1] ?? ''))
  const lines = [...faults].map((name) => `${name} ${rule(name)}`)
  if (set.DATABASE_URL && !set.CHOWDER_SECRET_KEY) {
    lines.push('CHOWDER_SECRET_KEY is required with DATABASE_URL: make one with `openssl rand -base64 32` and keep it')
  }
  if (lines.length > 0) throw new BadEnvironment(`bad environment:\n  ${lines.join('\n  ')}`)
  return Object.freeze(candidate as Config)
}
