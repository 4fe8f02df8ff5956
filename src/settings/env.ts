import { type Static, Type } from '@sinclair/typebox'
import { kubernetesSettings } from './kubernetes.ts'
import { relaySettings } from './relay.ts'
import { formatResources, type ResourceLimits, resourcesRule, usualMaxima, usualResources } from './resources.ts'

const httpUrl = (description: string) =>
  Type.String({
    pattern: '^https?://[^\\s]+$',
    rule: 'must be a URL that begins with http:// or https://',
    description,
  })

/** The name or address of a host as it is in a Host header, without a port. */
const host = '([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\])'

const price = (tier: string) =>
  Type.String({
    pattern: '^\\S+$',
    rule: 'must be the id of a price, such as price_1A2b3C',
    description: `id of the Stripe price of one instance on \`${tier}\`; required with \`STRIPE_SECRET_KEY\``,
  })

const limit = (defaultValue: number, description: string, maximum = 1_000_000) =>
  Type.Integer({
    default: defaultValue,
    minimum: 0,
    maximum,
    description: `${description}; \`0\`: no limit`,
  })

const resources = (usual: ResourceLimits, description: string) =>
  Type.String({
    default: formatResources(usual),
    pattern: '^[a-z_0-9=., ]+$',
    rule: `${resourcesRule(usual)}; none of AGENT_RESOURCES is above AGENT_RESOURCES_MAX`,
    description: `${description}; what is left out is as in the default: see [limits](operations.md#limits)`,
  })

/** A pattern of the names of regions. */
export const regionName = '[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?'

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
    }),
  ),
  CHOWDER_ROLE: Type.Union([Type.Literal('all'), Type.Literal('api'), Type.Literal('worker'), Type.Literal('relay')], {
    default: 'all',
    description:
      'the role of this process: `all`, `api`, `worker` or `relay`; an argument on the command line overrides it',
  }),
  CHOWDER_SECRET_KEY: Type.Optional(
    Type.String({
      pattern: '^[A-Za-z0-9+/]{43}=([\\s,]+[A-Za-z0-9+/]{43}=)?$',
      rule:
        'must be 32 bytes in base64: make one with `openssl rand -base64 32`. While the key is changed there may be two, ' +
        'separated by a comma or the end of a line: the first one seals',
      description:
        'the key that seals stored secrets, 32 bytes in base64; generated with the embedded database, required with ' +
        '`DATABASE_URL`; two keys while it is [changed](operations.md#change-the-secret-key)',
    }),
  ),
  CHOWDER_SECRET_KEY_COMMAND: Type.Optional(
    Type.String({
      minLength: 1,
      description:
        'program with its arguments, separated by spaces, that prints the secret key: ' +
        'see [a key of a KMS](operations.md#a-key-of-a-kms)',
    }),
  ),
  SANDBOX_DRIVER: Type.Union([Type.Literal('local'), Type.Literal('docker'), Type.Literal('kubernetes')], {
    default: 'local',
    description:
      'how agents run: as `local` processes of this host, as `docker` containers, or as pods of `kubernetes`',
  }),
  CHOWDER_CONFIG_FILE: Type.Optional(
    Type.String({
      minLength: 1,
      description: 'YAML file that names the regions, where agents run: see [regions](regions.md)',
    }),
  ),
  CHOWDER_REGIONS: Type.Optional(
    Type.String({
      pattern: `^${regionName}(, *${regionName})*$`,
      rule: 'must be names of regions, separated by commas',
      description:
        'regions that this worker or relay serves, separated by commas; by default all: see [regions](regions.md)',
    }),
  ),
  LOCAL_ISOLATION: Type.Union([Type.Literal('auto'), Type.Literal('jail'), Type.Literal('none')], {
    default: 'auto',
    description:
      'whether a local agent is put into a jail when it starts: `auto` if this machine can build one, `jail` or else ' +
      'Chowder does not start, or `none`: see [isolation](operations.md#isolation)',
  }),
  ALLOW_UNISOLATED: Type.Optional(
    Type.Literal('1', {
      description:
        '`1`: lets others reach a Chowder whose agents run as its own user without a jail, and lets it have more than one ' +
        'organization: each agent reads the secrets of all',
    }),
  ),
  LOCAL_UIDS: Type.String({
    default: '20000-29999',
    pattern: '^[0-9]{1,10}-[0-9]{1,10}$',
    rule: 'must be a range of user ids from 1000 to 4294967293, such as 20000-29999',
    description: 'ids of the users that local agents get when Chowder runs as root: no user and no group may have one',
  }),
  AGENT_RESOURCES: resources(
    usualResources,
    'what an agent may use, unless its organization or the instance says otherwise',
  ),
  AGENT_RESOURCES_MAX: resources(
    usualMaxima,
    'the most that an organization can give an agent; `npm run admin -- set-max-resources` sets it for one organization',
  ),
  DISK_FLOOR_MB: Type.Integer({
    default: 1024,
    minimum: 0,
    maximum: 1_000_000_000,
    description:
      'megabytes on the disk of `CHOWDER_DATA_DIR`, at most a tenth of it, that are for the control plane: with less left, ' +
      'nothing is created, started or uploaded, and agents that fill the disk are stopped; `0`: none',
  }),
  DOCKER_HOST: Type.String({
    default: 'unix:///var/run/docker.sock',
    minLength: 1,
    description: 'address of dockerd: `unix:///path` or `tcp://host:port`',
  }),
  DOCKER_CERT_PATH: Type.Optional(
    Type.String({
      minLength: 1,
      description:
        'folder with `ca.pem`, `cert.pem` and `key.pem`, as of the docker command: `tcp://` is TLS with it; required ' +
        'for a dockerd on another machine',
    }),
  ),
  DOCKER_GATEWAY_ADDRESS: Type.Union([Type.Literal('published'), Type.Literal('network')], {
    default: 'published',
    description:
      'address of gateways in containers: `published` at `DOCKER_PUBLISH_ADDRESS`, or their `network` address for a control plane in a container of `DOCKER_NETWORK`',
  }),
  DOCKER_PUBLISH_ADDRESS: Type.String({
    default: '127.0.0.1',
    pattern: '^(?!0\\.)(?:(?:25[0-5]|2[0-4]\\d|1?\\d?\\d)(?:\\.(?!$)|$)){4}$',
    rule: 'must be an IPv4 address of the host of dockerd, such as 10.1.0.5',
    description:
      'address of the host of dockerd at which `published` gateways listen; for a dockerd on another machine one in a ' +
      'private network, where Chowder reaches it: see [another host](docker.md#agents-on-another-host)',
  }),
  DOCKER_NETWORK: Type.String({
    default: 'chowder-agents',
    pattern: '^[a-z0-9][a-z0-9-]{0,14}$',
    rule: 'must be 1 to 15 lower-case letters, digits and hyphens, as it names a bridge',
    description: 'network of the agents, created if it is missing, and name of its bridge',
  }),
  DOCKER_EGRESS_NETWORK: Type.Optional(
    Type.String({
      pattern: '^[a-z0-9][a-z0-9-]{0,14}$',
      rule: 'must be 1 to 15 lower-case letters, digits and hyphens, as it names a bridge',
      description:
        'network by which a relay in a container reaches other hosts, and name of its bridge: with `network` as ' +
        '`DOCKER_GATEWAY_ADDRESS`, the firewall keeps it from the host as it does agents',
    }),
  ),
  DOCKER_BUILD_NETWORK: Type.String({
    default: 'default',
    minLength: 1,
    description: 'network for the build of agents’ images, as of `docker build --network`',
  }),
  DOCKER_NODE_IMAGE: Type.String({
    default: 'node:24-slim',
    pattern: '^[a-z0-9][A-Za-z0-9._/:@-]*$',
    rule: 'must be the name of an image, such as node:24-slim@sha256:…',
    description:
      'image of Node.js 24 on Debian that images are built on; with a digest the same one every time: ' +
      'see [pinned images](docker.md#pinned-images)',
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
  ...kubernetesSettings,
  ...relaySettings,
  CHOWDER_PUBLIC_URL: Type.Optional(httpUrl('URL of the API for clients')),
  CHOWDER_ALLOWED_HOSTS: Type.Optional(
    Type.String({
      pattern: `^(\\*|${host}(, *${host})*)$`,
      rule: 'must be names or addresses of hosts without ports, such as agents.example.com,10.0.0.7,[fd00::7], or *',
      description:
        'more names that clients reach the API by, separated by commas, or `*` for any: ' +
        'see [who may call](operations.md#who-may-call)',
    }),
  ),
  CORS_ALLOWED_ORIGINS: Type.Optional(
    Type.String({
      pattern: `^https?://${host}(:[0-9]+)?(, *https?://${host}(:[0-9]+)?)*$`,
      rule: 'must be origins such as https://app.example.com,http://localhost:3000, without a path',
      description:
        'origins of web pages that may call the API with scoped keys, separated by commas; ' +
        'by default none but the API’s own',
    }),
  ),
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
  OPENCLAW_MIN_VERSION: Type.Optional(
    Type.String({
      pattern: '^\\d{4}\\.\\d+\\.\\d+(-[0-9A-Za-z.]+)?$',
      rule: 'must be a version of OpenClaw, such as 2026.9.6',
      description:
        'oldest version of OpenClaw that agents may start with: ' +
        'see [vulnerable releases](security.md#vulnerable-releases)',
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
  WORKER_CONCURRENCY: Type.Integer({
    default: 8,
    minimum: 1,
    maximum: 256,
    description:
      'instances that one worker works on at once; those that wait for longer than a second do not count, up to 24 in all (twice as many, and 8 more)',
  }),
  STORED_BYTES_PER_ORGANIZATION: limit(
    10 * 1024 ** 3,
    'bytes that one organization stores in the database: responses, configurations of instances, answers that are ' +
      'kept for their `Idempotency-Key`; beyond it, what stores more is a 402',
    Number.MAX_SAFE_INTEGER,
  ),
  EVENT_BYTES_PER_ORGANIZATION: limit(
    1024 ** 3,
    'bytes of the history of one organization; beyond it, the oldest events are deleted',
    Number.MAX_SAFE_INTEGER,
  ),
  USAGE_BYTES_PER_ORGANIZATION: limit(
    1024 ** 3,
    'bytes of the usage of one organization, some 400 for a call of a model; beyond it, the oldest calls are deleted',
    Number.MAX_SAFE_INTEGER,
  ),
  DRAIN_SECONDS: Type.Integer({
    default: 60,
    minimum: 0,
    maximum: 900,
    description:
      'how long the turns that run may take to end by themselves when an API is asked to stop with SIGTERM; Ctrl-C ' +
      'ends them at once',
  }),
  DRAIN_NOTICE_SECONDS: Type.Integer({
    default: 0,
    minimum: 0,
    maximum: 60,
    description:
      'how long an API that is asked to stop still takes requests, while `/readyz` answers 503: for balancers that ' +
      'learn from it, as those of Kubernetes do',
  }),
  RATE_LIMIT_PER_MINUTE: limit(
    6000,
    'requests per minute with one key; all keys of an organization share five times as many, one address has 60 a ' +
      'minute without a valid key and 100 sign-ups an hour',
  ),
  SIGNUP: Type.Optional(
    Type.Union([Type.Literal('open'), Type.Literal('token'), Type.Literal('closed')], {
      description:
        'who may sign up: anybody (`open`), who has the token that `npm run admin -- signup-token` prints (`token`), ' +
        'or nobody (`closed`): see [who may call](operations.md#who-may-call)',
    }),
  ),
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

/** The settings. That of a secret that is in a file has its path beside it, if the file is read again later. */
export type Config = Readonly<Static<typeof Env> & { CHOWDER_SECRET_KEY_FILE?: string }>
