import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { pino } from 'pino'
import { makeTemporaryDataDir, migrateWithChowder, startChowder } from '../demo/chowder-process.ts'
import { startEmbeddedPostgres } from '../src/database/embedded.ts'
import { newId } from '../src/platform/ids.ts'
import type { BareSetup } from './bare-fastify.ts'
import { type Figure, figure, type Round } from './figures.ts'
import type { Load, Measured } from './load.ts'
import { startProgram } from './program.ts'
import { connect, type Tenant } from './tenant.ts'

const organizations = 64
const connections = 64
const quietTimeoutMs = 60_000

export interface Scale {
  rounds: number
  roundMs: number
  warmUpMs: number
}

/** A customer with one running agent. */
interface Owner {
  auth: Tenant['auth']
  instanceId: string
}

type Request = Load['requests'][number]

const json = { 'content-type': 'application/json' }

async function makeOwner(url: string): Promise<Owner> {
  const { auth, call } = await connect(url)
  const { id } = await call<{ id: string }>('POST', '/v1/instances', { name: 'agent' })
  return { auth, instanceId: id }
}

/** What a worker would have written once each agent ran, with the stub as everybody's gateway. */
async function markRunning(pool: pg.Pool, owners: Owner[], port: number): Promise<void> {
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port }
  await pool.query(
    'UPDATE instances SET ready_at = now(), observed_generation = generation, endpoint = $1 WHERE id = ANY($2)',
    [endpoint, owners.map(({ instanceId }) => instanceId)],
  )
}

/** Organizations for the bare INSERT's foreign key, apart from those whose rows Chowder updates. */
async function makeBareOrganizations(pool: pg.Pool): Promise<string[]> {
  const ids = Array.from({ length: organizations }, newId)
  await pool.query(
    `INSERT INTO organizations (id, name, subscription_tier) SELECT unnest($1::uuid[]), 'Bare', 'whale'`,
    [ids],
  )
  return ids
}

/** Until what a round left behind (bells, after all) is done: it is not to burden the next round. */
async function untilQuiet(pool: pg.Pool): Promise<void> {
  const deadline = performance.now() + quietTimeoutMs
  for (let quiet = 0; quiet < 3; ) {
    const { rows } = await pool.query<{ busy: number }>(
      `SELECT count(*)::int AS busy FROM pg_stat_activity WHERE state <> 'idle' AND backend_type = 'client backend' AND pid <> pg_backend_pid()`,
    )
    quiet = rows[0]?.busy === 0 ? quiet + 1 : 0
    if (performance.now() > deadline) throw new Error('the database does not come to rest')
    await sleep(50)
  }
}

/** How much more time the median request takes than without anything between. */
const added = (through: Measured, direct: Measured) => Math.max(0.001, through.p50Ms - direct.p50Ms)

const rounds = (sides: { chowder: Measured; limit: Measured }[], of: (measured: Measured) => number): Round[] =>
  sides.map(({ chowder, limit }) => ({ chowder: of(chowder), limit: of(limit) }))

/**
 * Creates, status polls and turns a second through the API, each beside the least that could do the same. Chowder's
 * API, its limit, the load and the stub gateway are processes of their own on one embedded PostgreSQL.
 */
export async function measureApi(
  { rounds: count, roundMs, warmUpMs }: Scale,
  say: (text: string) => void,
): Promise<Figure[]> {
  const undo: (() => Promise<unknown>)[] = []
  try {
    const dataDir = await makeTemporaryDataDir('chowder-bench-')
    undo.push(() => dataDir.remove())
    say('starting PostgreSQL and the API')
    const database = await startEmbeddedPostgres({ dataDir: dataDir.path, log: pino({ level: 'silent' }) })
    undo.push(() => database.stop())
    const pool = new pg.Pool({ ...database.connection, max: 2 })
    undo.push(() => pool.end())

    const chowder = {
      dataDir: dataDir.path,
      logFile: join(dataDir.path, 'chowder.log'),
      env: {
        RATE_LIMIT_PER_MINUTE: '0',
        SIGNUP_LIMIT_PER_HOUR: '0',
        DATABASE_URL: database.url,
        CHOWDER_SECRET_KEY: randomBytes(32).toString('base64'),
        CHOWDER_DEFAULT_TIER: 'whale',
      },
    }
    await migrateWithChowder(chowder)
    const api = await startChowder({ ...chowder, role: 'api' })
    undo.push(() => api.stop('SIGTERM'))
    const apiPort = Number(new URL(api.url).port)

    const start = async (name: string, setup: object): Promise<number> => {
      const program = startProgram(import.meta.resolve(name))
      undo.push(() => program.stop())
      return (await program.ask<{ port: number }>(setup)).port
    }
    const gatewayPort = await start('./stub-gateway.ts', {})
    const bareSetup: BareSetup = {
      connection: database.connection,
      organizationIds: await makeBareOrganizations(pool),
    }
    const barePort = await start('./bare-fastify.ts', bareSetup)
    const passThroughPort = await start('./pass-through.ts', { target: `http://127.0.0.1:${gatewayPort}` })
    const generator = startProgram(import.meta.resolve('./load.ts'))
    undo.push(() => generator.stop())

    const owners: Owner[] = []
    while (owners.length < organizations) owners.push(await makeOwner(api.url))
    await markRunning(pool, owners, gatewayPort)

    const load = async (port: number, requests: Request[], status: number, ms: number): Promise<Measured> => {
      const measured = await generator.ask<Measured>({ port, requests, connections, ms, status } satisfies Load)
      await untilQuiet(pool)
      return measured
    }
    type Side = [port: number, requests: Request[]]
    /** Both sides in turn, the one that is first changing, after a round each that does not count. */
    async function compare(what: string, status: number, chowder: Side, limit: Side) {
      say(what)
      const sides: { chowder: Measured; limit: Measured }[] = []
      await load(...limit, status, warmUpMs)
      await load(...chowder, status, warmUpMs)
      while (sides.length < count) {
        if (sides.length % 2 === 0) {
          const first = await load(...limit, status, roundMs)
          sides.push({ limit: first, chowder: await load(...chowder, status, roundMs) })
        } else {
          const first = await load(...chowder, status, roundMs)
          sides.push({ chowder: first, limit: await load(...limit, status, roundMs) })
        }
      }
      return sides
    }

    const newAgent = { method: 'POST', body: JSON.stringify({ name: 'agent' }) }
    const creates = await compare(
      'creates',
      201,
      [apiPort, owners.map(({ auth }) => ({ ...newAgent, path: '/v1/instances', headers: { ...json, ...auth } }))],
      [barePort, [{ ...newAgent, path: '/instances', headers: json }]],
    )
    const polls = await compare(
      'status polls',
      200,
      [
        apiPort,
        owners.map(({ auth, instanceId }) => ({
          method: 'GET',
          path: `/v1/instances/${instanceId}/status`,
          headers: auth,
        })),
      ],
      [
        barePort,
        owners.map(({ instanceId }) => ({ method: 'GET', path: `/instances/${instanceId}/status`, headers: {} })),
      ],
    )
    const turn = { method: 'POST', body: JSON.stringify({ model: 'claude-opus-5', input: 'Hello, who are you?' }) }
    const passed: Request[] = owners.map(({ auth }) => ({
      ...turn,
      path: '/v1/responses',
      headers: { ...json, ...auth },
    }))
    const turns = await compare(
      'turns through the proxy',
      200,
      [
        apiPort,
        owners.map(({ auth, instanceId }) => ({
          ...turn,
          path: `/v1/instances/${instanceId}/responses`,
          headers: { ...json, ...auth },
        })),
      ],
      [passThroughPort, passed],
    )
    const direct = await load(gatewayPort, passed, 200, roundMs)

    return [
      figure(
        'create accepted',
        '/s',
        { atLeast: 0.5 },
        rounds(creates, ({ perSecond }) => perSecond),
      ),
      figure(
        'create p99',
        'ms',
        { atMost: 2 },
        rounds(creates, ({ p99Ms }) => p99Ms),
      ),
      figure(
        'status polls',
        '/s',
        { atLeast: 0.7 },
        rounds(polls, ({ perSecond }) => perSecond),
      ),
      figure(
        'proxied turns',
        '/s',
        { atLeast: 0.7 },
        rounds(turns, ({ perSecond }) => perSecond),
      ),
      figure(
        'proxy added p50',
        'ms',
        { atMost: 1.5 },
        rounds(turns, (measured) => added(measured, direct)),
      ),
    ]
  } finally {
    for (let next = undo.pop(); next; next = undo.pop()) await next()
  }
}
