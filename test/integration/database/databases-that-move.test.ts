import { randomBytes } from 'node:crypto'
import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import pg from 'pg'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { openDatabase } from '#composition/database.ts'
import { createDrain } from '#composition/drain.ts'
import { createDb, type Db } from '#database/client.ts'
import { migrate, pendingMigrations } from '#database/migrate.ts'
import { organizations } from '#database/schema.ts'
import { connectBackend } from '#lifecycle/queue/queue-backend.ts'
import { newId } from '#platform/ids.ts'
import { loadConfig } from '#settings/config.ts'
import { databaseUrl } from '../../chaos/api-replicas.ts'
import { api } from '../../support/api-client.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import { startHere } from '../../support/started-chowder.ts'
import { cloneDatabase, type TestDatabase } from '../../support/test-database.ts'

let database: TestDatabase
let pool: pg.Pool

beforeEach(async () => {
  database = await cloneDatabase()
  pool = new pg.Pool({ ...database.connection, max: 1 })
  pool.on('error', () => {})
})
afterEach(async () => {
  await pool.end()
  await database.drop()
})

describe('R4: a connection', () => {
  const backend = async () => (await pool.query('SELECT pg_backend_pid() AS pid')).rows[0].pid
  const insert = (db: Db) => db.insert(organizations).values({ id: newId(), name: 'x', subscriptionTier: 'whale' })

  // The server lives on, and so does the connection: only that of a statement of its own would leave without Chowder.
  test.each<[string, (db: Db) => Promise<unknown>]>([
    ['a statement', insert],
    ['a transaction', (db) => db.transaction(insert)],
    [
      'a transaction that goes on after the refusal',
      (db) =>
        db.transaction(async (tx) => {
          const refusal = await tx.transaction(insert).catch((error: unknown) => error)
          await tx.execute('SELECT 1')
          if (refusal instanceof Error) throw refusal
        }),
    ],
  ])('to a server that has become read-only leaves the pool after %s', async (_what, act) => {
    const db = createDb(pool)
    const former = await backend()
    await pool.query('SET default_transaction_read_only = on')
    await expect(act(db)).rejects.toMatchObject({ cause: { code: '25006' } })
    await act(db)
    expect(await backend()).not.toBe(former)
  })

  /** Each with its use of one connection, whose name is `chowder-api`. */
  const pools: Record<string, () => Promise<{ use(): Promise<unknown>; close(): Promise<unknown> }>> = {
    async 'the database'() {
      const log = pino({ level: 'silent' })
      const drain = createDrain(log)
      const CHOWDER_SECRET_KEY = randomBytes(32).toString('base64')
      const config = loadConfig({ DATABASE_URL: databaseUrl(database.connection), CHOWDER_SECRET_KEY })
      const { db } = await openDatabase({ role: 'api', config, dataDir: '', log, drain })
      return { use: () => db.execute('SELECT 1'), close: () => drain.run({ interrupted: false }) }
    },
    async 'the queue'() {
      const connection = { ...database.connection, application_name: 'chowder-api' }
      const { ping, close } = connectBackend({ kind: 'postgres', connection }, undefined, {
        failed() {},
        recovered() {},
      })
      return { use: ping, close }
    },
  }

  test.each(Object.keys(pools))('of %s that is in use all the time is replaced after 10 minutes', async (name) => {
    // Other tests may have connections to other databases of the same server, and some that are just being closed.
    const before: number[] = []
    const connections = async (): Promise<number[]> => {
      const { rows } = await pool.query(
        `SELECT pid FROM pg_stat_activity
         WHERE application_name = 'chowder-api' AND datname = current_database() AND pid <> ALL ($1)`,
        [before],
      )
      return rows.map(({ pid }) => pid)
    }
    before.push(...(await connections()))
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] })
    const { use, close } = await present(pools[name])()
    try {
      await use()
      const [first] = await connections()
      expect(first).toBeDefined()
      for (let seconds = 0; seconds < 595; seconds += 5) {
        vi.advanceTimersByTime(5000)
        await use()
      }
      expect(await connections()).toContain(first)
      vi.advanceTimersByTime(5000)
      await use()
      expect(await connections()).not.toContain(first)
    } finally {
      vi.useRealTimers()
      await close()
    }
  })
})

test('R5: a process has DATABASE_POOL connections and 8 for its queue at most, as docs/operations.md counts them', async () => {
  const documented = await readFile(new URL('../../../docs/operations.md', import.meta.url), 'utf8')
  expect(documented).toMatch(/`DATABASE_POOL` \(10\) connections to PostgreSQL, and without `REDIS_URL` up to 8 more/)
  const sandboxes = new FakeDriver()
  sandboxes.fail({ method: 'create', times: 1000 }) // else the end of the process would wait for starts
  const chowder = await startHere(database.connection, sandboxes, { DATABASE_POOL: '3' })
  onTestFinished(() => chowder.close())
  const { body } = await api(chowder.url).post('/v1/organization/signup', { name: 'Acme' })
  const client = api(chowder.url, body.api_key)
  await client.patch('/v1/organization', { model_api_keys: { anthropic: 'sk-test' } })
  const most = { own: 0, queue: 0 }
  let isOver = false
  const load = Array.from({ length: 30 }, () => client.post('/v1/instances', { name: 'x' }))
  const answers = Promise.all(load).finally(() => {
    isOver = true
  })
  while (!isOver) {
    const { rows } = await pool.query(
      `SELECT count(*) FILTER (WHERE application_name = 'chowder-all')::int AS own,
              count(*) FILTER (WHERE application_name <> 'chowder-all' AND pid <> pg_backend_pid())::int AS queue
       FROM pg_stat_activity WHERE datname = current_database()`,
    )
    most.own = Math.max(most.own, rows[0].own)
    most.queue = Math.max(most.queue, rows[0].queue)
    await sleep(20)
  }
  expect(new Set((await answers).map(({ status }) => status))).toEqual(new Set([201]))
  expect(most.own).toBe(3)
  expect(most.queue).toBeLessThanOrEqual(8)
})

/** The migrations of the next version, which has one more: it changes a table that everybody reads. */
async function nextMigrations(): Promise<URL> {
  const folder = await mkdtemp(join(tmpdir(), 'chowder-migrations-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  await cp(new URL('../../../migrations/', import.meta.url), folder, { recursive: true })
  const path = join(folder, 'meta/_journal.json')
  const journal = JSON.parse(await readFile(path, 'utf8'))
  const last = journal.entries.at(-1)
  journal.entries.push({ ...last, idx: last.idx + 1, when: last.when + 1, tag: 'next' })
  await writeFile(path, JSON.stringify(journal))
  await writeFile(join(folder, 'next.sql'), 'ALTER TABLE api_keys ADD COLUMN next text;')
  return pathToFileURL(`${folder}/`)
}

test('R9: a migration that a deadlock has ended tries again', async () => {
  const next = await nextMigrations()
  // PostgreSQL ends one of the two transactions, whichever it likes: the first time it is this one.
  await pool.query(`
    CREATE SEQUENCE attempts;
    CREATE FUNCTION end_first() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF nextval('attempts') = 1 THEN RAISE 'deadlock detected' USING ERRCODE = '40P01'; END IF;
      RETURN NEW;
    END $$;
    CREATE TRIGGER end_first BEFORE INSERT ON drizzle.__drizzle_migrations FOR EACH ROW EXECUTE FUNCTION end_first()`)
  await migrate(pool, async () => {}, next)
  expect(await pendingMigrations(pool, next)).toBe(0)
})

test('R9: a migration that waits for a lock lets others go on, and tries again', async () => {
  const next = await nextMigrations()
  expect(await pendingMigrations(pool, next)).toBe(1)
  const reader = new pg.Client(database.connection)
  const other = new pg.Client(database.connection)
  await Promise.all([reader.connect(), other.connect()])
  try {
    await reader.query('BEGIN; SELECT FROM api_keys')
    let isMigrated = false
    const migrating = migrate(pool, async () => {}, next).then(() => {
      isMigrated = true
    })
    const waits: number[] = []
    for (const until = performance.now() + 7000; performance.now() < until; await sleep(50)) {
      const askedAt = performance.now()
      await other.query('SELECT count(*) FROM api_keys')
      waits.push(performance.now() - askedAt)
    }
    expect(isMigrated).toBe(false)
    expect(Math.max(...waits), 'the longest wait of a reader, in ms').toBeLessThan(4000)
    expect(Math.max(...waits), 'a migration that waited').toBeGreaterThan(1000)
    await reader.query('COMMIT')
    await migrating
    expect(await pendingMigrations(pool, next)).toBe(0)
  } finally {
    await Promise.all([reader.end(), other.end()])
  }
})
