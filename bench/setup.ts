import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { pino } from 'pino'
import { startEmbeddedPostgres } from '#database/embedded.ts'
import { type ChowderOptions, makeTemporaryDataDir, migrateWithChowder } from '../demo/chowder-process.ts'
import type { Load, Measured } from './load.ts'
import { startProgram } from './program.ts'
import { connect, type Tenant } from './tenant.ts'

const organizations = 64
const connections = 64
const quietTimeoutMs = 60_000

export type Request = Load['requests'][number]

/** A customer with one running agent. */
export interface Owner {
  auth: Tenant['auth']
  instanceId: string
}

/** Cleanup functions, which are called at the end in reverse order. */
export type Undo = (() => Promise<unknown>)[]

/** Calls all of them, also after one has failed: what it leaves would disturb the next run. Throws the first error. */
export async function undoAll(undo: Undo): Promise<void> {
  const errors: unknown[] = []
  for (let next = undo.pop(); next; next = undo.pop()) await next().catch((error: unknown) => errors.push(error))
  if (errors.length > 0) throw errors[0]
}

/** A PostgreSQL with Chowder's schema, and programs that load what stands on it. */
export interface Setup {
  pool: pg.Pool
  connection: pg.PoolConfig
  /** How a Chowder is started on it; it limits no rates. */
  chowder: Omit<ChowderOptions, 'role'> & { env: { CHOWDER_SECRET_KEY: string } }
  /** Starts one of the bench's programs; resolves to the port that it listens on. */
  start(name: string, setup: object): Promise<number>
  /**
   * Sends requests to these ports in turn for so long, `atOnce` at a time, and waits until the database is at rest
   * again.
   */
  load(ports: number[], requests: Request[], status: number, ms: number, atOnce?: number): Promise<Measured>
}

/** Waits until the jobs of a round are done, so that they do not slow down the next round. */
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

/** Starts a PostgreSQL in a temporary folder. Every Chowder of the setup gets the settings in `env`. */
export async function createSetup(undo: Undo, env: Record<string, string> = {}): Promise<Setup> {
  const dataDir = await makeTemporaryDataDir('chowder-bench-')
  undo.push(() => dataDir.remove())
  const database = await startEmbeddedPostgres({ dataDir: dataDir.path, log: pino({ level: 'silent' }) })
  undo.push(() => database.stop())
  const pool = new pg.Pool({ ...database.connection, max: 2 })
  undo.push(() => pool.end())
  const chowder = {
    dataDir: dataDir.path,
    logFile: join(dataDir.path, 'chowder.log'),
    env: {
      RATE_LIMIT_PER_MINUTE: '0',
      DATABASE_URL: database.url,
      CHOWDER_SECRET_KEY: randomBytes(32).toString('base64'),
      ...env,
    },
  }
  await migrateWithChowder(chowder)
  const generator = startProgram(import.meta.resolve('./load.ts'))
  undo.push(() => generator.stop())
  return {
    pool,
    connection: database.connection,
    chowder,
    async start(name, setup) {
      const program = startProgram(import.meta.resolve(name))
      undo.push(() => program.stop())
      return (await program.ask<{ port: number }>(setup)).port
    },
    async load(ports, requests, status, ms, atOnce = connections) {
      const measured = await generator.ask<Measured>({
        ports,
        requests,
        connections: atOnce,
        ms,
        status,
      } satisfies Load)
      await untilQuiet(pool)
      return measured
    },
  }
}

/**
 * Signs up customers, each with an agent that is marked as a worker would have once it ran, with the stub as its
 * gateway.
 */
export async function makeOwners(pool: pg.Pool, url: string, gatewayPort: number): Promise<Owner[]> {
  const owners: Owner[] = []
  while (owners.length < organizations) {
    const { auth, call } = await connect(url)
    const { id } = await call<{ id: string }>('POST', '/v1/instances', { name: 'agent' })
    owners.push({ auth, instanceId: id })
  }
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port: gatewayPort }
  await pool.query(
    'UPDATE instances SET ready_at = now(), observed_generation = generation, endpoint = $1 WHERE id = ANY($2)',
    [endpoint, owners.map(({ instanceId }) => instanceId)],
  )
  return owners
}

export const json = { 'content-type': 'application/json' }
export const newAgent = { method: 'POST', body: JSON.stringify({ name: 'agent' }) }
export const turn = {
  method: 'POST',
  body: JSON.stringify({ model: 'claude-sonnet-4-6', input: 'Hello, who are you?' }),
}

/** One request of each owner's. */
export const createsOf = (owners: Owner[]): Request[] =>
  owners.map(({ auth }) => ({ ...newAgent, path: '/v1/instances', headers: { ...json, ...auth } }))

export const pollsOf = (owners: Owner[]): Request[] =>
  owners.map(({ auth, instanceId }) => ({
    method: 'GET',
    path: `/v1/instances/${instanceId}/status`,
    headers: auth,
  }))

/** Turns of a session run one after the other: with this many of each owner, none of those at once waits. */
const sessions = Array.from({ length: 8 }, (_, number) => `s${number}`)

/** A turn in each session of each owner. */
export const turnsOf = (owners: Owner[], one = turn): Request[] =>
  sessions.flatMap((session) =>
    owners.map(({ auth, instanceId }) => ({
      ...one,
      path: `/v1/instances/${instanceId}/session/${session}/responses`,
      headers: { ...json, ...auth },
    })),
  )
