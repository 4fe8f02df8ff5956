import { randomUUID } from 'node:crypto'
import { afterAll, afterEach, expect, test, vi } from 'vitest'
import { claimDue, firstId } from '#instances/claim.ts'
import { onlyRegion, type Region } from '#instances/regions.ts'
import { findWaiting } from '#lifecycle/queue/sweep.ts'
import { present } from '../../support/present.ts'
import { cloneDatabase } from '../../support/test-database.ts'

const database = await cloneDatabase()
// Without events, which nothing here reads.
await database.pool.query('ALTER TABLE instances DISABLE TRIGGER USER')
afterAll(() => database.drop())
afterEach(() => database.pool.query('TRUNCATE instances, organizations CASCADE'))

const organization = (number: number) => `00000000-0000-7000-8000-${number.toString(16).padStart(12, '0')}`

/** The region of rows without one and of those with its name, and another one with the same driver. */
const fake = onlyRegion({ sandboxes: { name: 'fake' } } as never).default() as Region
const west: Region = { ...fake, region: 'west', hasUnnamed: false }

interface Due {
  /** Since so many minutes; a negative number for the time of a later attempt. */
  minutes?: number
  driver?: string
  region?: string | null
  isLeased?: boolean
}

/** Rows of an organization that are due. Returns their ids. */
async function insertDue(number: number, rows: Due[]): Promise<string[]> {
  const { pool } = database
  const id = organization(number)
  await pool.query(
    `INSERT INTO organizations (id, name, subscription_tier) VALUES ($1, 'x', 'whale') ON CONFLICT DO NOTHING`,
    [id],
  )
  const inserted: string[] = []
  for (const { minutes = 1, driver = 'fake', region = null, isLeased = false } of rows) {
    const row = randomUUID()
    await pool.query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                              sealed_token, next_attempt_at, lease_until, region)
       VALUES ($1, $2, 'x', 'anthropic', $3, '1', 'running', '', now() - make_interval(mins => $4),
               now() + make_interval(mins => $5), $6)`,
      [row, id, driver, minutes, isLeased ? 1 : -1, region],
    )
    inserted.push(row)
  }
  return inserted
}

const claim = (options: Partial<Parameters<typeof claimDue>[1]> = {}) =>
  claimDue(database.db, { regions: [fake], afterOrganization: firstId, exceptOrganizations: [], ...options })

const idOf = async (claimed: ReturnType<typeof claim>) => (await claimed)?.id

test('the row of an organization that has waited longest is claimed once, with a lease and an attempt', async () => {
  const [young, old] = await insertDue(1, [{ minutes: 1 }, { minutes: 2 }])
  const claimed = present(await claim())
  expect(claimed).toMatchObject({ id: old, attempts: 1, organizationId: organization(1) })
  expect(claimed.leaseToken).toBeGreaterThan(0)
  expect(claimed.leaseUntil.getTime()).toBeGreaterThan(Date.now())
  expect(await idOf(claim())).toBe(young)
  expect(await claim()).toBeNull()
})

test('an organization with fewer leases is first, and those with as many take turns', async () => {
  await insertDue(1, [{ isLeased: true }, { isLeased: true }, { minutes: 90 }, { minutes: 90 }])
  await insertDue(2, [{ isLeased: true }, {}])
  await insertDue(3, [{}, {}])
  await insertDue(4, [{}])
  const claims: string[] = []
  for (let after = organization(3); ; ) {
    const claimed = await claim({ afterOrganization: after })
    if (!claimed) break
    after = claimed.organizationId
    claims.push(after)
  }
  expect(claims).toEqual([4, 3, 2, 3, 1, 1].map(organization))
})

test('rows of other drivers, of later attempts, with a lease, and of excepted organizations are left', async () => {
  await insertDue(1, [{ driver: 'docker' }, { minutes: -5 }, { isLeased: true }])
  await insertDue(2, [{}])
  expect(await claim({ exceptOrganizations: [organization(2)] })).toBeNull()
  expect((await claim())?.organizationId).toBe(organization(2))
  expect(await claim()).toBeNull()
})

test('rows of the regions of a worker are claimed alone, and the oldest first wherever they are', async () => {
  const [unnamed, named, ofWest] = await insertDue(1, [
    { minutes: 2 },
    { minutes: 3, region: 'fake' },
    { region: 'west' },
  ])
  await insertDue(1, [{ driver: 'docker', region: 'west' }, { region: 'east' }])
  expect(await idOf(claim({ regions: [] }))).toBeUndefined()
  expect(await idOf(claim())).toBe(named)
  expect(await idOf(claim({ regions: [west, fake] }))).toBe(unnamed)
  expect(await claim()).toBeNull()
  expect(await idOf(claim({ regions: [west, fake] }))).toBe(ofWest)
  expect(await claim({ regions: [west, fake] })).toBeNull()
  expect(await findWaiting(database.db)).toEqual([
    { driver: 'docker', region: 'west' },
    { driver: 'fake', region: 'east' },
  ])
})

test('a row that another claim holds is passed over, and claims at the same time get different rows', async () => {
  const [, held] = await insertDue(1, [{ minutes: 1 }, { minutes: 9 }])
  const other = await database.pool.connect()
  try {
    await other.query('BEGIN')
    await other.query('SELECT FROM instances WHERE id = $1 FOR UPDATE', [held])
    expect(await idOf(claim())).not.toBe(held)
    expect(await claim()).toBeNull()
    await other.query('COMMIT')
  } finally {
    other.release()
  }
  expect(await idOf(claim())).toBe(held)

  for (const number of [1, 2, 3])
    await insertDue(
      number,
      Array.from({ length: 4 }, () => ({})),
    )
  const ids = await Promise.all(Array.from({ length: 8 }, () => idOf(claim())))
  expect(ids).not.toContain(undefined)
  expect(new Set(ids).size).toBe(8)
})

test('a row is found behind very many organizations whose rows wait for a later attempt', async () => {
  const last = 300
  for (let number = 1; number < last; number += 1) await insertDue(number, [{ minutes: -5 }])
  await insertDue(last, [{}])
  expect((await claim())?.organizationId).toBe(organization(last))
})

/** `rows` due rows of `organizations`, four fifths of the first one, as after an outage. */
async function insertMany(rows: number, organizations: number): Promise<void> {
  const { pool } = database
  await pool.query(
    `INSERT INTO organizations (id, name, subscription_tier)
     SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 'x', 'whale' FROM generate_series(1, $1::int) n`,
    [organizations],
  )
  await pool.query(
    `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                            sealed_token, next_attempt_at, lease_until)
     SELECT gen_random_uuid(), ('00000000-0000-7000-8000-' || lpad(to_hex(owner), 12, '0'))::uuid, 'x', 'anthropic', 'fake',
            '1', 'running', '', now() - random() * interval '1 hour', now() - interval '1 hour'
     FROM (SELECT CASE WHEN n % 5 > 0 THEN 1 ELSE 1 + n / 5 % $2::int END AS owner FROM generate_series(1, $1::int) n) due`,
    [rows, organizations],
  )
}

interface Plan {
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
}

/** How many pages the middle one of some claims reads, and which organizations they are of. */
async function measureClaims(claims: number) {
  const { pool } = database
  const claimed: string[] = []
  const pages: number[] = []
  for (let after = firstId; claimed.length < claims; ) {
    const queries = vi.spyOn(pool, 'query')
    const row = present(await claim({ afterOrganization: after }))
    const [[{ text }, values]] = queries.mock.calls as unknown as [[{ text: string }, unknown[]]]
    queries.mockRestore()
    after = row.organizationId
    claimed.push(after)
    // The same claim again, which is rolled back.
    const client = await pool.connect()
    try {
      await client.query('BEGIN')
      const { rows } = await client.query(`EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ${text}`, values)
      const plan: Plan = rows[0]['QUERY PLAN'][0].Plan
      pages.push(plan['Shared Hit Blocks'] + plan['Shared Read Blocks'])
      await client.query('ROLLBACK')
    } finally {
      client.release()
    }
  }
  return { pages: present(pages.sort((a, b) => a - b)[claims / 2]), claimed }
}

for (const { rows, organizations, tags } of [
  { rows: 10_000, organizations: 100, tags: [] },
  { rows: 100_000, organizations: 1000, tags: ['long'] },
]) {
  const title = `F27: a claim costs the same with ${rows} due rows of ${organizations} organizations as with 500`
  test(title, { timeout: 300_000, tags }, async () => {
    await insertMany(500, 50)
    const { pages: few } = await measureClaims(20)
    await database.pool.query('TRUNCATE instances, organizations CASCADE')
    await insertMany(rows, organizations)
    for (const statistics of ['none', 'of all rows']) {
      if (statistics !== 'none') await database.pool.query('ANALYZE instances')
      const { pages, claimed } = await measureClaims(20)
      process.stderr.write(`F27: a claim reads ${pages} pages with ${rows} due rows, ${few} with 500\n`)
      // An index has one more level, and there are leases of the claims before.
      expect(pages, `pages, with statistics: ${statistics}`).toBeLessThan(2 * few)
      expect(new Set(claimed).size, 'each of another organization').toBe(20)
    }
  })
}
