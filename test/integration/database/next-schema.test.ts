import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, expect, test } from 'vitest'
import { findIllegalTransitions } from '../../chaos/checker.ts'
import { api } from '../../support/api-client.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { type StartedChowder, startHere } from '../../support/started-chowder.ts'
import { cloneDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

let chowder: StartedChowder

const database = await cloneDatabase()
const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
chowder = await startHere(database.connection, driver)
afterAll(async () => {
  await chowder?.close()
  await gateway.close()
  await database.drop()
})

const query = async (text: string, ...values: unknown[]) => (await database.pool.query(text, values)).rows

/** The next version's migration: it adds columns, and replaces the trigger and its function by ones that do more. */
async function migrateToNext(): Promise<void> {
  const [{ source }] = await query(`SELECT pg_get_functiondef('record_instance_event'::regproc) AS source`)
  const [{ trigger }] = await query(
    `SELECT pg_get_triggerdef(oid) AS trigger FROM pg_trigger WHERE tgname = 'instances_events'`,
  )
  const replaced = [
    source.replace('INSERT INTO events (', 'INSERT INTO events (next, ').replace('VALUES (', `VALUES ('of the next', `),
    trigger
      .replace('CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER')
      .replace('WHEN (', 'WHEN (new.next IS DISTINCT FROM NULL OR '),
  ]
  expect(replaced[0]).not.toBe(source)
  expect(replaced[1]).toMatch(/^CREATE OR REPLACE TRIGGER .* WHEN \(new\.next/)
  const client = await database.pool.connect()
  try {
    await client.query('BEGIN')
    // In the order in which a change of an instance locks them: in the other one, PostgreSQL would end one of the two.
    await client.query('ALTER TABLE instances ADD COLUMN next text')
    await client.query('ALTER TABLE events ADD COLUMN next text')
    for (const statement of replaced) await client.query(statement)
    await client.query(
      `INSERT INTO drizzle.__drizzle_migrations (hash, created_at)
       SELECT 'next', max(created_at) + 1 FROM drizzle.__drizzle_migrations`,
    )
    await client.query('COMMIT')
  } finally {
    client.release()
  }
}

test('F22: a version that runs goes on while the next one replaces a trigger and its function, and starts again after a roll back', async () => {
  const { body } = await api(chowder.url).post('/v1/organization/signup', { name: 'Acme' })
  const key: string = body.api_key
  await api(chowder.url, key).patch('/v1/organization', { model_api_keys: { anthropic: 'sk-test' } })

  /** The life of an instance. Throws for an answer that is no success. */
  async function live(client: ReturnType<typeof api>): Promise<string> {
    const done = async (answer: ReturnType<typeof client.get>) => {
      const { status, body } = await answer
      if (status >= 300) throw new Error(`${status} ${JSON.stringify(body)}`)
      return body
    }
    const { id } = await done(client.post('/v1/instances', { name: 'x' }))
    const is = (status: string) =>
      until(`it to be ${status}`, async () => (await done(client.get(`/v1/instances/${id}`))).status === status)
    await is('running')
    await done(client.patch(`/v1/instances/${id}`, { name: 'y' }))
    await done(client.post(`/v1/instances/${id}/stop`))
    await is('stopped')
    await done(client.delete(`/v1/instances/${id}`))
    return id
  }

  const ids: string[] = []
  const failed: string[] = []
  let isOver = false
  const load = Array.from({ length: 4 }, async () => {
    while (!isOver) {
      await live(api(chowder.url, key)).then(
        (id) => ids.push(id),
        (error) => failed.push(String(error)),
      )
    }
  })
  await until('some lives before', () => ids.length >= 4 || failed.length > 0)
  await migrateToNext()
  const lived = ids.length
  await until('some lives after', () => ids.length >= lived + 4)
  isOver = true
  await Promise.all(load)
  expect(failed).toEqual([])

  // Back: a process of the version before starts on the next one's schema.
  await chowder.close()
  chowder = await startHere(database.connection, driver)
  const last = await live(api(chowder.url, key))
  await until('its end', () => !driver.sandboxes.has(last))
  await sleep(100)
  const events = await query('SELECT type, next FROM events WHERE instance_id = $1 ORDER BY id', last)
  expect(events.map(({ type }) => type)).toEqual(
    expect.arrayContaining(['instance.create', 'instance.running', 'instance.stopped', 'instance.delete']),
  )
  expect(new Set(events.map(({ next }) => next))).toEqual(new Set(['of the next']))
  expect(await findIllegalTransitions(database.pool)).toEqual([])
})
