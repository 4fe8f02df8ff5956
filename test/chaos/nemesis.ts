import { randomBytes } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import pTimeout from 'p-timeout'
import type pg from 'pg'
import { pino } from 'pino'
import { examine } from '#commands/doctor/examine.ts'
import { withRelayPort } from '#composition/installation.ts'
import { sharedSettings } from '#composition/settings.ts'
import { createDb } from '#database/client.ts'
import { onlyRegion } from '#instances/regions.ts'
import { createQueue } from '#lifecycle/queue/queue.ts'
import { isObject } from '#openclaw/json.ts'
import { createVault } from '#platform/secrets.ts'
import { loadConfig } from '#settings/config.ts'
import { findSecrets } from '../support/canary/search.ts'
import { newSecret, noteSecret } from '../support/canary/secrets.ts'
import { openCloudDriver } from '../support/cloud-driver.ts'
import { type CloudCall, cloudFaultKinds, type FakeCloud, startFakeCloud } from '../support/fake-cloud.ts'
import { startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { present } from '../support/present.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { until } from '../support/until.ts'
import {
  findDoubled,
  findIllegalTransitions,
  findLost,
  findOverLimit,
  findUndocumented,
  findUnrecorded,
  findUnsettled,
  findWrongConflicts,
  type Violation,
} from './checker.ts'
import { type Journal, runClient, startOnce } from './client.ts'
import { leaveEarly, sendLargeBodies, trickleBodies } from './hostile-clients.ts'
import { type Random, randomFrom } from './random.ts'
import { openRecovery, type Recovery } from './recovery.ts'
import { type Crash, type Replica, superviseReplica } from './replicas.ts'
import type { Report } from './table.ts'

export interface NemesisOptions {
  /** The database that Chowder is to use, migrated and empty: directly, and how to reach it. */
  pool: pg.Pool
  connection: pg.PoolConfig
  /** Null for the queue in PostgreSQL. The database of this index is emptied. */
  redisUrl: string | null
  seed: number
  /** How long faults are injected: two thirds of it one upon the other, then one at a time. */
  durationMs: number
  /** For the data of Chowder's processes, and their logs; passable for others. */
  folder: string
  log(line: string): void
}

/** Of the Redis server; others use 0. */
const redisDatabase = 7
const clientsOfEach = 3
/** Few enough that the clients meet it. */
const smallLimit = 5
const bootMs = 150
const startTimeoutMs = 90_000
/** The time for the clients' last answers after they were asked to stop. */
const clientsEndMs = 180_000
/**
 * From the end of all faults until everything accepted came true: a hung gateway takes about 60 s to be found and
 * started.
 */
const quiescenceMs = 180_000
/** Longer than the interval of drift checks, so that one of them has found nothing to do. */
const quietForMs = 7000
const startsWithinMs = 90_000

/** How often each is chosen. */
const weights = {
  'worker: kill -9': 6,
  'api: kill -9': 4,
  'worker: SIGTERM': 3,
  'api: SIGTERM': 3,
  'database: connections ended': 4,
  'database: cut off': 3,
  'database: half-open': 2,
  'queue: emptied': 4,
  'queue: cut off': 3,
  'sandbox: dies': 5,
  'sandbox: out of memory': 2,
  'sandbox: gateway hangs': 2,
  'cloud: lost reply': 3,
  'cloud: too many requests': 2,
  'cloud: server error': 2,
  'cloud: hang': 2,
  'cloud: wrong 404': 3,
  'cloud: out of capacity': 2,
  'cloud: slow': 3,
  'gateway: floods': 3,
  'gateway: nonsense': 2,
  'client: large bodies': 2,
  'client: trickles': 2,
  'client: leaves': 2,
} satisfies Record<string, number>
type FaultKind = keyof typeof weights

/** The last part of a run: one fault at a time, the next when the system has recovered from it. */
const aloneShare = 1 / 3
const recoversWithinMs = 120_000

const cloudCalls: readonly CloudCall[] = [
  'create',
  'start',
  'stop',
  'destroy',
  'observe',
  'activity',
  'list',
  'files',
  'exec',
]

/** Everything that a run stands on. */
interface Run {
  options: NemesisOptions
  random: Random
  cloud: FakeCloud
  database: TcpProxy
  redis: { proxy: TcpProxy; direct: Redis } | null
  replicas: Replica[]
  /** Replicas that are being ended right now. */
  busy: Set<Replica>
  recovery: Recovery
  /** The key of each organization. */
  keys: Map<string, string>
  /** Periods in which the outcome of a commit is unknown. */
  disturbances: { from: number; to: number }[]
  background: Set<Promise<unknown>>
}

const targetOf = ({ host = 'localhost', port = 5432 }: pg.PoolConfig) =>
  host.startsWith('/') ? { path: `${host}/.s.PGSQL.${port}` } : { host, port }

function urlThrough(proxy: TcpProxy, { user, password, database }: pg.PoolConfig): string {
  const url = new URL(`postgresql://${proxy.host}:${proxy.port}/${database}`)
  url.username = user ?? ''
  url.password = String(password ?? '')
  return url.href
}

/** A connection may come as a URL. */
function spelledOut(connection: pg.PoolConfig): pg.PoolConfig {
  if (connection.connectionString === undefined) return connection
  const url = new URL(connection.connectionString)
  return {
    host: url.hostname,
    port: Number(url.port || 5432),
    user: decodeURIComponent(url.username),
    password: decodeURIComponent(url.password),
    database: url.pathname.slice(1),
  }
}

async function openRedis(redisUrl: string) {
  const url = new URL(redisUrl)
  const proxy = await openProxy({ host: url.hostname, port: Number(url.port || 6379) })
  const direct = new Redis(redisUrl, { db: redisDatabase, maxRetriesPerRequest: 3 })
  await direct.flushdb()
  return { proxy, direct, url: `redis://${proxy.host}:${proxy.port}/${redisDatabase}` }
}

/** Empties the queue as a FLUSHALL, or a restart without data, does. */
async function emptyQueue({ redis, options: { pool } }: Run): Promise<void> {
  if (redis) return void (await redis.direct.flushdb())
  await pool.query('TRUNCATE bullmq.job CASCADE')
}

/**
 * Injects one fault and heals it again; resolves once it is healed, with what has to recover from then on. False when
 * there is nothing that it could strike.
 */
async function inject(run: Run, kind: FaultKind): Promise<boolean> {
  const { random, cloud, database, redis, replicas, busy, recovery, options } = run
  const holdMs = random.between(500, 5000)
  const [where, what] = kind.split(': ') as [string, string]

  const disturbed = async (act: () => Promise<unknown>) => {
    const window = { from: Date.now(), to: Number.POSITIVE_INFINITY }
    run.disturbances.push(window)
    await act()
    window.to = Date.now() + 1000
  }

  if (where === 'worker' || where === 'api') {
    const replica = random.pick(replicas.filter((one) => one.role === where && one.isRunning() && !busy.has(one)))
    if (!replica) return false
    busy.add(replica)
    await recovery.watchDue(kind)
    const ended = replica.kill(what === 'SIGTERM' ? 'SIGTERM' : 'SIGKILL').finally(() => busy.delete(replica))
    run.background.add(ended)
    return true
  }
  if (where === 'sandbox') {
    const running = cloud.sandboxes().filter(({ isHealthy }) => isHealthy)
    const { id } = random.pick(running) ?? {}
    if (id === undefined) return false
    if (what === 'gateway hangs') cloud.hang(id)
    else
      await cloud.die(
        id,
        what === 'dies' ? { code: random.pick([1, 137, null]), oom: false } : { code: 137, oom: true },
      )
    recovery.watchSandbox(kind, id)
    return true
  }
  if (where === 'gateway') {
    const running = cloud.sandboxes().filter(({ isHealthy }) => isHealthy)
    const { id } = random.pick(running) ?? {}
    if (id === undefined) return false
    const end = cloud.takeOver(id, what === 'floods' ? random.pick(['items', 'events']) : 'nonsense')
    await sleep(holdMs)
    end()
  } else if (where === 'client') {
    const url = random.pick(replicas.flatMap((replica) => replica.url() ?? []))
    const { rows } = await options.pool.query<{ id: string; organization_id: string }>(
      `SELECT id, organization_id FROM instances WHERE desired_state = 'running' AND ready_at IS NOT NULL ORDER BY id`,
    )
    const instance = random.pick(rows)
    const key = run.keys.get(instance?.organization_id ?? '')
    if (!url || !instance || !key) return false
    const attack = { 'large bodies': sendLargeBodies, trickles: trickleBodies, leaves: leaveEarly }[what]
    await present(attack)({ url, key, instanceId: instance.id, ms: holdMs })
  } else if (where === 'cloud') {
    const fault = present(cloudFaultKinds.find((one) => one === what))
    cloud.fail({
      kind: fault,
      calls: random.next() < 0.5 ? [] : [present(random.pick(cloudCalls))],
      times: random.between(1, 6),
      slowMs: random.between(200, 4000),
    })
    await sleep(holdMs)
    cloud.heal()
  } else if (kind === 'database: connections ended') {
    await disturbed(() =>
      options.pool.query(
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'chowder-%'`,
      ),
    )
  } else if (where === 'database') {
    await disturbed(async () => {
      if (what === 'cut off') database.cut()
      else database.freeze()
      await sleep(holdMs)
      database.heal()
    })
  } else if (kind === 'queue: emptied') {
    await emptyQueue(run)
  } else {
    if (!redis) return false
    redis.proxy.cut()
    await sleep(holdMs)
    redis.proxy.heal()
  }
  await recovery.watchDue(kind)
  return true
}

const markerIn = (config: Record<string, unknown> | null): string | null | undefined => {
  if (!config) return undefined
  const { messages } = config
  return isObject(messages) && typeof messages.responsePrefix === 'string' ? messages.responsePrefix : null
}

/** A new organization with a key for the model provider, and room for `limit` instances. */
async function signUp(url: string, pool: pg.Pool, providerKey: string, limit: number | null) {
  const call = async (path: string, method: string, body: object, key = ''): Promise<Record<string, unknown>> => {
    const headers = { 'content-type': 'application/json', authorization: `Bearer ${key}` }
    const response = await fetch(`${url}${path}`, { method, headers, body: JSON.stringify(body) })
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`)
    return (await response.json()) as Record<string, unknown>
  }
  const { organization, api_key: key } = await call('/v1/organization/signup', 'POST', { name: 'Acme' })
  const { id } = organization as { id: string }
  await call('/v1/organization', 'PATCH', { model_api_keys: { anthropic: providerKey } }, String(key))
  await pool.query('UPDATE organizations SET instance_limit = $1 WHERE id = $2', [limit, id])
  return { id, key: String(key), limit }
}

/**
 * Two APIs and two workers of Chowder, as real processes on a fake cloud, behind proxies; clients that create, start,
 * stop, configure and delete instances; and all the while one fault after the other, as the seed says. Then all faults
 * end, and what must always hold is checked. The same seed makes the same choices, though not to the same moment.
 * Throws when Chowder cannot be started at all.
 */
export async function runNemesis(options: NemesisOptions): Promise<Report> {
  const { pool, redisUrl, seed, durationMs, folder, log } = options
  const startedAt = performance.now()
  const connection = spelledOut(options.connection)
  const providerKey = newSecret('provider key', 'sk-ant-')
  const overrideSecret = newSecret('override secret')
  const secretKey = randomBytes(32)
  const crashes: Crash[] = []
  const provider = await startFakeModelProvider({ apiKey: providerKey })
  const cloud = await startFakeCloud({ bootMs })
  const database = await openProxy(targetOf(connection))
  const redis = redisUrl === null ? null : await openRedis(redisUrl)
  await mkdir(folder, { recursive: true })
  const replicas = (['api', 'api', 'worker', 'worker'] as const).map((role, at) => {
    const env = {
      PATH: process.env.PATH ?? '',
      HOME: folder,
      PORT: '0',
      RELAY_PORT: '0',
      LOG_LEVEL: 'debug',
      CLOUD_URL: cloud.url,
      CHOWDER_DATA_DIR: join(folder, 'data'),
      CHOWDER_SECRET_KEY: secretKey.toString('base64'),
      DATABASE_URL: urlThrough(database, connection),
      ANTHROPIC_BASE_URL: provider.url,
      RATE_LIMIT_PER_MINUTE: '0',
      WARM_POOL: '2',
      ...(redis && { REDIS_URL: redis.url }),
    }
    return superviseReplica({ role, env, logFile: join(folder, `${role}-${at}.log`), crashes })
  })
  const together = openRecovery(pool, cloud)
  const run: Run = {
    options,
    random: randomFrom(seed),
    cloud,
    database,
    redis,
    replicas,
    busy: new Set(),
    recovery: together,
    keys: new Map(),
    disturbances: [],
    background: new Set(),
  }
  const urls = () => replicas.flatMap((replica) => replica.url() ?? [])
  const allRun = () => replicas.every((replica) => replica.isRunning())
  const violations: Violation[] = []
  const faults: Record<string, number> = {}
  const journal: Journal = { operations: [], expected: new Map() }

  /** Until all processes run, and what the last faults have left to do is done. */
  async function recovered(): Promise<void> {
    const isOver = () => allRun() && run.busy.size === 0 && [together, run.recovery].every((one) => one.isIdle())
    for (const deadline = performance.now() + recoversWithinMs; !isOver() && performance.now() < deadline; ) {
      await sleep(100)
    }
  }

  async function suffer(organizations: { id: string; key: string }[]): Promise<void> {
    const ending = new AbortController()
    const clients = organizations.flatMap((organization, at) =>
      Array.from({ length: clientsOfEach }, (_, which) =>
        runClient(
          {
            random: randomFrom(seed, 1 + at * clientsOfEach + which),
            urls,
            organization,
            journal,
            prefix: `${'ab'[at]}${which}`,
            secret: overrideSecret,
            mostInstances: 3,
          },
          ending.signal,
        ),
      ),
    )
    const strike = async (kind: FaultKind) => {
      if (await inject(run, kind)) faults[kind] = (faults[kind] ?? 0) + 1
    }
    const end = performance.now() + durationMs
    while (performance.now() < end - durationMs * aloneShare) {
      await sleep(run.random.between(200, 2000))
      await strike(run.random.weighted(weights))
    }
    log('from now on one fault at a time')
    run.recovery = openRecovery(pool, cloud)
    while (performance.now() < end) {
      await recovered()
      await sleep(run.random.between(500, 2000))
      await strike(run.random.weighted(weights))
    }
    await recovered()
    log('the faults have ended')
    ending.abort()
    const message = `the clients had no answer ${clientsEndMs} ms after the last fault`
    await pTimeout(Promise.all(clients), { milliseconds: clientsEndMs, message })
    await Promise.all(run.background)
    await until('all processes to run again', allRun, startTimeoutMs)
  }

  /** Waits until all work is done for the length of a drift check. Remaining work at the limit is a violation. */
  async function settle(): Promise<Violation[]> {
    let quietSince = performance.now()
    for (const deadline = performance.now() + quiescenceMs; ; await sleep(250)) {
      const unsettled = await findUnsettled(pool, cloud.sandboxes())
      const now = performance.now()
      if (unsettled.length > 0) quietSince = now
      if (now - quietSince > quietForMs || now > deadline) return unsettled
    }
  }

  /** With all faults over, what was given up comes back when its owner starts it. */
  async function startGivenUp(keys: ReadonlyMap<string, string>): Promise<Violation[]> {
    const { rows } = await pool.query<{ id: string; organization_id: string }>(
      `SELECT id, organization_id FROM instances WHERE desired_state = 'running' AND ready_at IS NULL
       AND observed_generation = generation`,
    )
    log(`${rows.length} instances were given up with a reason, and are started`)
    const answers = await Promise.all(
      rows.map(async ({ id, organization_id: organizationId }) => ({
        id,
        answer: await Promise.race([
          startOnce(present(urls()[0]), present(keys.get(organizationId)), id),
          sleep(startsWithinMs, 'no answer', { ref: false }),
        ]),
      })),
    )
    return answers
      .filter(({ answer }) => !answer.startsWith('200 ') || !answer.includes('"status":"running"'))
      .map(({ id, answer }) => ({
        what: 'lost',
        instanceId: id,
        why: `it could not be started when all was well again: ${answer.slice(0, 300)}`,
      }))
  }

  /** The findings of the doctor once all rows are settled. */
  async function askDoctor(): Promise<Violation[]> {
    const log = pino({ level: 'silent' })
    const queue = createQueue(redis ? { kind: 'redis', url: redis.url } : { kind: 'postgres', connection }, log)
    try {
      const sandboxes = openCloudDriver(cloud.url, 'doctor')
      const db = createDb(pool)
      const config = await withRelayPort(loadConfig({ RELAY_PORT: '0' }), db)
      const found = await examine({
        config,
        db,
        regions: onlyRegion({ ...sharedSettings(config), sandboxes }).all(),
        vault: createVault(secretKey),
        queue,
      })
      return found.map(({ area, what }) => ({
        what: 'found by the doctor',
        instanceId: null,
        why: `${area}: ${what}`,
      }))
    } finally {
      await queue.close()
    }
  }

  try {
    await until('Chowder to run', allRun, startTimeoutMs)
    const organizations = await Promise.all([
      signUp(present(urls()[0]), pool, providerKey, smallLimit),
      signUp(present(urls()[0]), pool, providerKey, null),
    ])
    for (const { id, key } of organizations) run.keys.set(id, key)
    log(`${redis ? 'redis' : 'postgres'}: Chowder runs, seed ${seed}`)
    await suffer(organizations)
    violations.push(...(await settle()))
    violations.push(...(await startGivenUp(run.keys)))
    violations.push(...(await settle()))
    log('at rest')

    noteSecret('secret key', secretKey.toString('base64'))
    noteSecret('password', String(connection.password ?? ''))
    for (const { key } of organizations) noteSecret('API key', key)
    for (const token of cloud.tokens) noteSecret('gateway token', token)
    const secrets = await findSecrets({ folders: [folder], databases: [connection], redisUrl: redis?.url ?? null })
    violations.push(
      ...(await findIllegalTransitions(pool)),
      ...(await findOverLimit(pool, new Map(organizations.map(({ id, limit }) => [id, limit])))),
      ...(await findDoubled(pool, cloud.history, cloud.overlaps)),
      ...(await findLost(pool, journal, (id) => markerIn(cloud.config(id)))),
      ...(await findUnrecorded(pool, journal)),
      ...(await findWrongConflicts(pool, journal, run.disturbances)),
      ...findUndocumented(journal),
      ...(await askDoctor()),
      ...secrets.map(({ secret, encoding, place }) => ({
        what: 'secret in the clear' as const,
        instanceId: null,
        why: `${secret.kind} (${encoding}) in ${place}`,
      })),
      ...crashes
        .filter(({ wasRunning }) => wasRunning)
        .map(({ role, code }) => ({
          what: 'crashed process' as const,
          instanceId: null,
          why: `a process of the role ${role} ended by itself with exit code ${code}`,
        })),
    )
  } finally {
    together.close()
    run.recovery.close()
    await Promise.all(replicas.map((replica) => replica.close()))
    await database.close()
    await redis?.proxy.close()
    redis?.direct.disconnect()
    await cloud.close()
    await provider.close()
  }

  const countBy = <T>(items: readonly T[], of: (item: T) => string): Record<string, number> =>
    Object.fromEntries(Array.from(Map.groupBy(items, of), ([name, group]) => [name, group.length]))
  const { rows: counted } = await pool.query<{ count: number }>('SELECT count(*)::int AS count FROM instances')
  return {
    seed,
    queue: redis ? 'redis' : 'postgres',
    seconds: (performance.now() - startedAt) / 1000,
    faults,
    operations: countBy(journal.operations, ({ kind }) => kind),
    answers: countBy(
      journal.operations.flatMap(({ attempts }) => attempts),
      ({ status }) => String(status ?? 'none'),
    ),
    instances: counted[0]?.count ?? 0,
    violations,
    recovery: { together: together.times, alone: run.recovery === together ? {} : run.recovery.times },
  }
}
