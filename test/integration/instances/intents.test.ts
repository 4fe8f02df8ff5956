import { randomUUID } from 'node:crypto'
import { and, eq } from 'drizzle-orm'
import { afterAll, expect, onTestFinished, test, vi } from 'vitest'
import { markForRestart } from '#composition/agents.ts'
import { instances, organizations } from '#database/schema.ts'
import { claimDue, firstId } from '#instances/claim.ts'
import { type Intent, raiseGeneration } from '#instances/intent.ts'
import { withLease } from '#instances/lease.ts'
import { onlyRegion } from '#instances/regions.ts'
import { isRunningAndFree } from '#instances/status.ts'
import { present } from '../../support/present.ts'
import { cloneDatabase } from '../../support/test-database.ts'

const organizationId = randomUUID()

const database = await cloneDatabase()
await database.db.insert(organizations).values({ id: organizationId, name: 'Acme', subscriptionTier: 'shrimp' })
afterAll(() => database.drop())

const longAgo = new Date('2026-01-01T00:00:00Z')
const later = new Date('2100-01-01T00:00:00Z')

/** A row in which no column has the value that an intent would set. */
const row = {
  organizationId,
  name: 'my-assistant',
  modelProvider: 'anthropic',
  sandboxDriver: 'fake',
  openclawVersion: 'v1',
  sealedToken: 'sealed',
  generation: 7,
  step: 'checkHealth',
  attempts: 3,
  nextAttemptAt: later,
  leaseUntil: longAgo,
  sandboxId: 'sandbox',
  endpoint: { kind: 'tcp', host: '127.0.0.1', port: 9 },
  readyAt: longAgo,
  errorMessage: 'no luck',
  createdAt: longAgo,
  updatedAt: longAgo,
} as const

/** The columns that raising the generation for an intent changes, with their new values; `now` for a time just now. */
async function changedBy(intent: Intent, state: Partial<typeof instances.$inferInsert>) {
  const id = randomUUID()
  const { db } = database
  const values = { ...row, id, desiredState: 'running' as const, observedGeneration: 7, ...state }
  const [before] = await db.insert(instances).values(values).returning()
  const [after] = await db.update(instances).set(raiseGeneration(intent)).where(eq(instances.id, id)).returning()
  const shown = (value: unknown) =>
    value instanceof Date && Math.abs(value.getTime() - Date.now()) < 60_000 ? 'now' : value
  return Object.fromEntries(
    Object.entries(after ?? {})
      .filter(([name, value]) => String(value) !== String(before?.[name as keyof typeof before]))
      .map(([name, value]) => [name, shown(value)]),
  )
}

const requested = {
  generation: 8,
  readyAt: null,
  attempts: 0,
  nextAttemptAt: 'now',
  errorMessage: null,
  updatedAt: 'now',
}
const due = { observedGeneration: 6 }

test.each([
  ['start', 'a stopped instance', { desiredState: 'stopped' }, { ...requested, desiredState: 'running' }],
  [
    'start',
    'one that stops',
    { ...due, desiredState: 'stopped' },
    { ...requested, desiredState: 'running', restartGeneration: 8 },
  ],
  ['stop', 'a running instance', {}, { ...requested, desiredState: 'stopped' }],
  [
    'stop',
    'an instance whose gateway has a token of the relay',
    { relayTokenHash: Buffer.from('a hash') },
    { ...requested, desiredState: 'stopped', relayTokenHash: null },
  ],
  ['terminate', 'a running instance', {}, { ...requested, desiredState: 'terminated', terminatedAt: 'now' }],
  ['changeRunning', 'a running instance', {}, { generation: 8, attempts: 0 }],
  ['changeStored', 'a settled instance', {}, { updatedAt: 'now' }],
  ['changeStored', 'one that starts', due, { generation: 8, attempts: 0, nextAttemptAt: 'now', updatedAt: 'now' }],
  ['changeStored', 'one that stops', { ...due, desiredState: 'stopped' }, { generation: 8, updatedAt: 'now' }],
  ['changeProviderKey', 'a running instance', {}, { generation: 8, attempts: 0 }],
  ['connectChannel', 'a running instance', {}, { generation: 8, attempts: 0, nextAttemptAt: 'now' }],
  ['restart', 'a running instance', {}, { ...requested, restartGeneration: 8 }],
  ['stopWithChowder', 'a running instance', {}, { generation: 8, readyAt: null, attempts: 0, updatedAt: 'now' }],
  ['drift', 'a running instance', {}, { generation: 8, nextAttemptAt: 'now' }],
] as const)('%s of %s resets exactly these columns', async (intent, _state, state, columns) => {
  expect(await changedBy(intent, state)).toEqual(columns)
})

test('R10: very many agents are marked in batches when Chowder stops with them', async () => {
  const { db } = database
  const running = { ...row, sandboxDriver: 'of this test', desiredState: 'running' as const, observedGeneration: 7 }
  await db.insert(instances).values(Array.from({ length: 1300 }, () => ({ ...running, id: randomUUID() })))
  const left = () => db.$count(instances, and(eq(instances.sandboxDriver, 'of this test'), isRunningAndFree))
  const late = AbortSignal.abort(new Error('late'))
  const isHere = eq(instances.sandboxDriver, 'of this test')
  await expect(markForRestart(db, isHere, late)).rejects.toThrow('late')
  expect(await left()).toBe(300)
  await markForRestart(db, isHere, late)
  expect(await left()).toBe(0)
})

const claimable = {
  ...row,
  sandboxDriver: 'of claims',
  desiredState: 'running' as const,
  observedGeneration: 6,
  nextAttemptAt: longAgo,
}
const ofClaims = onlyRegion({ sandboxes: { name: 'of claims' } } as never).all()
const scope = { regions: ofClaims, afterOrganization: firstId, exceptOrganizations: [] }

test('R10: a take that a failover of the database has lost gives nobody the token of the next one', async () => {
  const { db } = database
  const id = randomUUID()
  await db.insert(instances).values({ ...claimable, id, leaseToken: 41 })
  const [before] = await db.select().from(instances).where(eq(instances.id, id))
  const { leaseToken, leaseUntil, attempts } = present(before)
  const sleeping = present(await claimDue(db, scope))
  const stop = new AbortController().signal
  await withLease(db, sleeping, performance.now(), stop, async (lease) => {
    // The standby has not got the take.
    await db.update(instances).set({ leaseToken, leaseUntil, attempts }).where(eq(instances.id, id))
    const next = present(await claimDue(db, scope))
    expect(next.leaseToken).not.toBe(sleeping.leaseToken)
    await expect(lease.write({ step: 'startGateway' })).rejects.toThrow('was lost')
  })
  expect((await db.select().from(instances).where(eq(instances.id, id)))[0]?.step).toBe('checkHealth')
})

test('R1: a take costs the same when another instance has all events that the planner knows of', async () => {
  const { db, pool } = database
  const id = randomUUID()
  await db.insert(instances).values({ ...claimable, id })
  await pool.query('DELETE FROM events')
  await pool.query(
    `INSERT INTO events (organization_id, instance_id, type, actor_type)
     SELECT $1, $2, 'instance.update', 'system' FROM generate_series(1, 20000)`,
    [organizationId, randomUUID()],
  )
  await pool.query('ANALYZE events')
  const queries = vi.spyOn(pool, 'query')
  onTestFinished(() => queries.mockRestore())
  await claimDue(db, scope)
  const [[{ text }, values]] = queries.mock.calls as unknown as [[{ text: string }, unknown[]]]
  const { rows } = await pool.query(`EXPLAIN ${text}`, values)
  expect(rows.map((line) => line['QUERY PLAN']).join('\n')).toContain('using events_instance on events')
})
