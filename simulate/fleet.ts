import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { eq, sql } from 'drizzle-orm'
import pMap from 'p-map'
import pg from 'pg'
import { pino } from 'pino'
import { createDb } from '#database/client.ts'
import { startEmbeddedPostgres } from '#database/embedded.ts'
import { instances, organizations } from '#database/schema.ts'
import { hashRelayToken, newRelayToken, newToken } from '#instances/gateway/tokens.ts'
import { limitsFor } from '#instances/resources.ts'
import { sealRelayToken, sealToken } from '#instances/row.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { newId } from '#platform/ids.ts'
import { createVault } from '#platform/secrets.ts'
import { readResourceSettings } from '#settings/resources.ts'
import { type Program, startProgram } from '../bench/program.ts'
import { connect, type Tenant } from '../bench/tenant.ts'
import { type ChowderProcess, makeTemporaryDataDir, migrateWithChowder, startChowder } from '../demo/chowder-process.ts'
import type { PlatformMessage } from './platform.ts'

/** Chowder on the platform at CLOUD_URL. */
const entry = join(import.meta.dirname, '../test/chaos/chowder.ts')
const organizationCount = 200
const signupsAtOnce = 8
const seedBatch = 500
/** To PostgreSQL, those of the queue included, as docs/operations.md says. */
const connectionsOfProcess = 18

/** As docker-compose.yml and deploy/kubernetes have it. */
const nodeOptionsOfWorkers = '--max-semi-space-size=8'

/** A customer of the fleet, with the instances that it has. */
export interface Customer extends Tenant {
  id: string
  instances: string[]
}

/** What is simulated: a real control plane, on a platform that is not real. */
export interface Fleet {
  pool: pg.Pool
  api: ChowderProcess
  workers: ChowderProcess[]
  customers: Customer[]
  tell(message: PlatformMessage): Promise<void>
  /** Ends all of it. */
  close(): Promise<void>
}

export interface FleetOptions {
  instances: number
  workers: number
  report(text: string): void
}

/** Starts the control plane with instances that run, as they are hours after they were created. */
export async function startFleet({ instances: count, workers: workerCount, report }: FleetOptions): Promise<Fleet> {
  const undo: (() => Promise<unknown>)[] = []
  const close = async () => {
    for (const act of undo.splice(0).reverse()) await act()
  }
  try {
    report('starting PostgreSQL')
    const dataDir = await makeTemporaryDataDir('chowder-simulate-')
    undo.push(() => dataDir.remove())
    const database = await startDatabase(dataDir.path, workerCount + 1)
    undo.push(() => database.stop())
    const pool = new pg.Pool({ ...database.connection, max: 2 })
    undo.push(() => pool.end())
    const platform = startProgram(import.meta.resolve('./platform.ts'))
    undo.push(() => platform.stop())
    const tell = tellInTurn(platform)
    const folder = join(dataDir.path, 'gateways')
    const { port } = await platform.ask<{ port: number }>({ kind: 'open', folder })
    const secretKey = randomBytes(32)
    const chowder = {
      dataDir: dataDir.path,
      logFile: join(dataDir.path, 'chowder.log'),
      env: {
        CLOUD_URL: `http://127.0.0.1:${port}`,
        DATABASE_URL: database.url,
        CHOWDER_SECRET_KEY: secretKey.toString('base64'),
        ANTHROPIC_BASE_URL: 'http://127.0.0.1:9', // nobody: a refused connection says nothing of a key
        RATE_LIMIT_PER_MINUTE: '0',
      },
    }
    await migrateWithChowder(chowder)
    const start = async (role: 'api' | 'worker') => {
      const env = { ...chowder.env, ...(role === 'worker' && { NODE_OPTIONS: nodeOptionsOfWorkers }) }
      const started = await startChowder({ ...chowder, env, entry, role })
      undo.push(() => started.stop('SIGTERM'))
      return started
    }
    const api = await start('api')
    report(`signing up ${organizationCount} organizations`)
    const customers = await pMap(
      Array.from({ length: organizationCount }),
      async () => {
        const tenant = await connect(api.url)
        const { id } = await tenant.call<{ id: string }>('GET', '/v1/organization')
        return { ...tenant, id, instances: [] }
      },
      { concurrency: signupsAtOnce },
    )
    report(`writing ${count} instances that run`)
    await seed({ pool, customers, tell }, secretKey, count, folder)
    report(`starting ${workerCount} workers`)
    const workers: ChowderProcess[] = []
    while (workers.length < workerCount) workers.push(await start('worker'))
    return { pool, api, workers, customers, tell, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** Starts a PostgreSQL that takes the connections of so many processes: by default, it takes those of five. */
async function startDatabase(dataDir: string, processes: number) {
  const start = () => startEmbeddedPostgres({ dataDir, log: pino({ level: 'silent' }) })
  const database = await start()
  const client = new pg.Client(database.connection)
  await client.connect()
  await client.query(`ALTER SYSTEM SET max_connections = ${(processes + 1) * connectionsOfProcess}`)
  await client.end()
  await database.stop()
  return start()
}

/** A program is asked one thing at a time. */
function tellInTurn(platform: Program): Fleet['tell'] {
  let last: Promise<unknown> = Promise.resolve()
  return async (message) => {
    last = last.then(() => platform.ask(message))
    await last
  }
}

/** Writes rows as they are once a worker has started their gateways, and has the platform run these. */
async function seed(
  { pool, customers, tell }: Pick<Fleet, 'pool' | 'customers' | 'tell'>,
  secretKey: Buffer,
  count: number,
  gateways: string,
): Promise<void> {
  const settings = readResourceSettings('')
  if (!settings) throw new Error('Chowder has no limits by default')
  const asked = limitsFor({}, { resources: {}, maxResources: {} }, settings)
  const limits = { asked, kept: { memory_mb: null, cpus: null, pids: null } }
  const db = createDb(pool)
  const vault = createVault(secretKey)
  for (let made = 0; made < count; made += seedBatch) {
    const values = Array.from({ length: Math.min(seedBatch, count - made) }, (_, index) => {
      const customer = customers[(made + index) % customers.length] as Customer
      const id = newId()
      customer.instances.push(id)
      const relayToken = newRelayToken()
      return {
        id,
        organizationId: customer.id,
        name: 'simulated',
        modelProvider: 'anthropic' as const,
        sandboxDriver: 'cloud',
        openclawVersion: defaultRelease,
        desiredState: 'running' as const,
        observedGeneration: 1,
        sandboxId: `simulated-${id}`,
        endpoint: { kind: 'unix', path: join(gateways, id) },
        sealedToken: sealToken(vault, id, newToken()),
        sealedRelayToken: sealRelayToken(vault, id, relayToken),
        limits,
        relayTokenHash: hashRelayToken(relayToken),
        readyAt: sql`now() - interval '1 day'`,
        createdAt: sql`now() - interval '1 day'`,
      }
    })
    await db.insert(instances).values(values)
    await tell({ kind: 'run', ids: values.map(({ id }) => id) })
  }
  for (const { id, instances: own } of customers) {
    await db.update(organizations).set({ instanceCount: own.length }).where(eq(organizations.id, id))
  }
  await pool.query('TRUNCATE events') // those of what was written here
  await pool.query('VACUUM ANALYZE')
}
