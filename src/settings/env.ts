import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { docker } from './docker.ts'
import { kubernetes } from './kubernetes.ts'
import { relay } from './relay.ts'
import { formatResources, resourcesRule, usualResources } from './resources.ts'
import type { SettingOptions } from './setting-options.ts'
import { warmPoolPattern } from './warm-pool.ts'

const httpUrl = (description: string, more: Partial<SettingOptions> = {}) =>
  Type.String({
    pattern: '^https?://[^\\s]+$',
    rule: 'must be a URL that begins with http:// or https://',
    description,
    ...more,
  })

/** The name or address of a host in a Host header, without a port. */
const host = '([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])'

const limit = (defaultValue: number, description: string, maximum = 1_000_000) =>
  Type.Integer({
    default: defaultValue,
    minimum: 0,
    maximum,
    description: `${description}; \`0\`: no limit`,
  })

/** A pattern of the names of regions. */
export const regionName = '[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?'

const api = {
  HOST: Type.String({
    default: '127.0.0.1',
    minLength: 1,
    description: 'address that the API listens on',
    isSetByCompose: true,
  }),
  PORT: Type.Integer({
    default: 8080,
    minimum: 0,
    maximum: 65535,
    description: 'port that the API listens on',
    isSetByCompose: true,
  }),
  CHOWDER_PUBLIC_URL: Type.Optional(
    httpUrl('URL of the API for clients', {
      example: 'https://agents.example.com',
      defaultText: '`http://HOST:PORT`',
      isSetByCompose: true,
    }),
  ),
  CHOWDER_ALLOWED_HOSTS: Type.Optional(
    Type.String({
      pattern: `^(\\*|${host}(, *${host})*)$`,
      rule: 'must be names or addresses of hosts without ports, such as agents.example.com,10.0.0.7,[fd00::7], or *',
      description:
        'more names that clients reach the API by, separated by commas, or `*` for any: ' +
        'see [who may call](operations.md#who-may-call)',
      example: 'chowder.internal,10.0.0.7',
    }),
  ),
  CORS_ALLOWED_ORIGINS: Type.Optional(
    Type.String({
      pattern: `^https?://${host}(:[0-9]+)?(, *https?://${host}(:[0-9]+)?)*$`,
      rule: 'must be origins such as https://app.example.com,http://localhost:3000, without a path',
      description:
        'origins of web pages that may call the API with scoped keys, separated by commas; ' +
        'by default none but the API’s own',
      example: 'https://app.example.com',
    }),
  ),
  TRUST_PROXY: Type.Integer({
    default: 0,
    minimum: 0,
    maximum: 10,
    description: 'number of proxies in front of Chowder, whose `X-Forwarded-For` names the client',
    isSetByCompose: true,
  }),
}

const data = {
  CHOWDER_DATA_DIR: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'embedded database, releases, local sandboxes, generated secret key',
      example: './data',
      defaultText: '`./data`, as root `/var/lib/chowder`',
      isSetByCompose: true,
    }),
  ),
  DATABASE_URL: Type.Optional(
    Type.String({
      pattern: '^postgres(ql)?://',
      rule: 'must begin with postgres:// or postgresql://',
      description: 'PostgreSQL 14 or newer',
      example: 'postgres://chowder:password@127.0.0.1:5432/chowder',
      defaultText: 'embedded',
      isSecret: true,
      isSetByCompose: true,
    }),
  ),
  DATABASE_POOL: Type.Integer({
    default: 10,
    minimum: 2,
    maximum: 500,
    description:
      'connections of one process to PostgreSQL, beside those of the queue: see [connections](operations.md#connections)',
  }),
  REDIS_URL: Type.Optional(
    Type.String({
      pattern: '^rediss?://',
      rule: 'must begin with redis:// or rediss://',
      description: 'Redis 6.2 or newer, or Valkey',
      example: 'redis://127.0.0.1:6379',
      defaultText: 'queue in PostgreSQL',
      isSecret: true,
      isSetByCompose: true,
    }),
  ),
  CHOWDER_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^[A-Za-z0-9+/]{43}=([\\s,]+[A-Za-z0-9+/]{43}=)?$',
      rule:
        'must be 32 bytes in base64: make one with `openssl rand -base64 32`. While the key is changed there may be two, ' +
        'separated by a comma or the end of a line: the first one seals',
      description:
        'the key that seals stored secrets, 32 bytes in base64; generated with the embedded database, required with ' +
        '`DATABASE_URL`; two keys while it is [changed](operations.md#change-the-secret-key)',
      defaultText: 'generated',
      isSecret: true,
      isSetByCompose: true,
    }),
  ),
}

const agents = {
  SANDBOX_DRIVER: Type.Union([Type.Literal('local'), Type.Literal('docker'), Type.Literal('kubernetes')], {
    default: 'local',
    description:
      'how agents run: as `local` processes of this host, as `docker` containers, or as pods of `kubernetes`',
    isSetByCompose: true,
  }),
  CHOWDER_CONFIG_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'YAML file that names the regions, where agents run: see [regions](regions.md)',
      example: '/etc/chowder/chowder.yaml',
      isSetByCompose: true,
    }),
  ),
  CHOWDER_REGIONS: Type.Optional(
    Type.String({
      pattern: `^${regionName}(, *${regionName})*$`,
      rule: 'must be names of regions, separated by commas',
      description:
        'regions that this worker or relay serves, separated by commas; by default all: see [regions](regions.md)',
      example: 'eu-1,us-1',
      defaultText: 'all',
    }),
  ),
  AGENT_RESOURCES: Type.String({
    default: formatResources(usualResources),
    pattern: '^[a-z_0-9=., ]+$',
    rule: resourcesRule(usualResources),
    description:
      'what an agent may use, unless its organization or the instance says otherwise: at most four times as much, or ' +
      'what `npm run admin -- set-max-resources` sets for one organization; what is left out is as in the default: ' +
      'see [limits](operations.md#limits)',
  }),
  WARM_POOL: Type.String({
    default: 'auto',
    pattern: warmPoolPattern,
    rule: 'must be auto, or a number from 0 to 100',
    description:
      'how many agents of each region are started before a customer asks for them: `auto` for one, with local agents ' +
      'only while the machine has the memory: see [warm pool](operations.md#warm-pool)',
  }),
  IDLE_TIMEOUT_SECONDS: Type.Optional(
    Type.Integer({
      minimum: 60,
      maximum: 2_592_000,
      description:
        '`idle_timeout_seconds` of instances that are created without one: how long an agent may be idle before it ' +
        '[sleeps](api.md#agents-that-sleep)',
      defaultText: 'agents do not sleep',
    }),
  ),
  LOCAL_ISOLATION: Type.Union([Type.Literal('auto'), Type.Literal('jail'), Type.Literal('none')], {
    default: 'auto',
    description:
      'whether a local agent is put into a jail when it starts: `auto` if this machine can build one, `jail` or else ' +
      'Chowder does not start, or `none`, which also lets others reach such a Chowder if each agent reads the secrets ' +
      'of all. An ordinary user has more than one organization with `jail` and `none` only: ' +
      'see [isolation](operations.md#isolation)',
    isSetByCompose: true,
  }),
  OPENCLAW_MIN_VERSION: Type.Optional(
    Type.String({
      pattern: '^\\d{4}\\.\\d+\\.\\d+(-[0-9A-Za-z.]+)?$',
      rule: 'must be a version of OpenClaw, such as 2026.9.6',
      description:
        'oldest version of OpenClaw that agents may start with: ' +
        'see [vulnerable releases](security.md#vulnerable-releases)',
      defaultText: 'the first without a known vulnerability',
    }),
  ),
  CLAWHUB_REGISTRY: Type.Optional(httpUrl('URL of the skill registry', { defaultText: 'OpenClaw’s' })),
}

const models = {
  ANTHROPIC_BASE_URL: Type.Optional(httpUrl('URL of Anthropic’s API, without `/v1`', { defaultText: 'the vendor’s' })),
  OPENAI_BASE_URL: Type.Optional(httpUrl('URL of OpenAI’s API, without `/v1`', { defaultText: 'the vendor’s' })),
  GEMINI_BASE_URL: Type.Optional(httpUrl('URL of Gemini’s API, without `/v1beta`', { defaultText: 'the vendor’s' })),
  CHOWDER_MODELS_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'JSON file that adds models to the table of the release, or changes them: see [models](models.md)',
      example: '/etc/chowder/models.json',
      isSetByCompose: true,
    }),
  ),
}

const customers = {
  SIGNUP: Type.Optional(
    Type.Union([Type.Literal('open'), Type.Literal('token'), Type.Literal('closed')], {
      description:
        'who may sign up: anybody (`open`), who has the token that `npm run admin -- signup-token` prints (`token`), ' +
        'or nobody (`closed`): see [who may call](operations.md#who-may-call)',
      example: 'token',
      defaultText: '`open` while only this machine reaches the API, else `token`',
    }),
  ),
  RATE_LIMIT_PER_MINUTE: limit(
    6000,
    'requests per minute with one key; all keys of an organization share five times as many, one address has 60 a ' +
      'minute without a valid key and 100 sign-ups an hour',
  ),
}

const billing = {
  STRIPE_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^(sk|rk)_\\S+$',
      rule: 'must begin with sk_ or rk_',
      description: 'Stripe’s secret key; billing is off without it: see [billing](operations.md#billing)',
      defaultText: 'no billing',
      isSecret: true,
    }),
  ),
  STRIPE_WEBHOOK_SECRET: Type.Optional(
    Type.String({
      pattern: '^whsec_\\S+$',
      rule: 'must begin with whsec_',
      description: 'secret that signs Stripe’s requests to `/v1/webhooks/stripe`; required with `STRIPE_SECRET_KEY`',
      isSecret: true,
    }),
  ),
}

const processes = {
  DRAIN_SECONDS: Type.Integer({
    default: 60,
    minimum: 0,
    maximum: 900,
    description:
      'how long the turns that run may take to end by themselves when an API is asked to stop with SIGTERM; Ctrl-C ' +
      'ends them at once',
  }),
  METRICS_PORT: Type.Optional(
    Type.String({
      pattern: `^(${host}:)?[0-9]{1,5}$`,
      rule: 'must be a port, or an address with a port, such as 0.0.0.0:9464',
      description:
        'port of Prometheus’ `/metrics`, which requires no key, another one for each process; at 127.0.0.1, unless an ' +
        'address precedes it, such as `0.0.0.0:9464`',
      example: '9464',
      defaultText: 'no metrics',
      isSetByCompose: true,
    }),
  ),
  LOG_LEVEL: Type.Union(
    (['fatal', 'error', 'warn', 'info', 'debug', 'trace', 'silent'] as const).map((level) => Type.Literal(level)),
    { default: 'info', description: 'the least important lines of the log that are written' },
  ),
}

export type Setting = TSchema & Partial<SettingOptions>

/** The settings by group, in the order of docs/settings.md. */
export const groups: readonly { title: string; settings: Record<string, Setting> }[] = [
  { title: 'The API', settings: api },
  { title: 'Data and secrets', settings: data },
  { title: 'Agents', settings: agents },
  { title: 'Docker', settings: docker },
  { title: 'Kubernetes', settings: kubernetes },
  { title: 'The relay and the egress proxy', settings: relay },
  { title: 'Models', settings: models },
  { title: 'Customers', settings: customers },
  { title: 'Billing', settings: billing },
  { title: 'Processes', settings: processes },
]

/** All settings. They are environment variables; no other file reads process.env. */
export const Env = Type.Object({
  ...api,
  ...data,
  ...agents,
  ...docker,
  ...kubernetes,
  ...relay,
  ...models,
  ...customers,
  ...billing,
  ...processes,
})

/**
 * The settings, and the role of the process, which is the argument of its command line. A secret from a file has the
 * path beside it, if the file is reread later.
 */
export type Config = Readonly<Static<typeof Env> & { CHOWDER_ROLE?: 'all' | 'api' | 'worker' | 'relay' }>
