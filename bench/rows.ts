import { examine } from '#commands/doctor/examine.ts'
import type { DoctorDeps } from '#commands/doctor/finding.ts'
import { createDb } from '#database/client.ts'
import { claimDue, firstId } from '#instances/claim.ts'
import { onlyRegion } from '#instances/regions.ts'
import { createBacklogMetrics } from '#lifecycle/queue/backlog.ts'
import { allShards } from '#lifecycle/queue/shards.ts'
import { createDriftDetection } from '#lifecycle/watch/drift.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { loadConfig } from '#settings/config.ts'
import { readResourceSettings } from '#settings/resources.ts'
import { startChowder } from '../demo/chowder-process.ts'
import { openCloudDriver } from '../test/support/cloud-driver.ts'
import { present } from '../test/support/present.ts'
import { type Fact, type Figure, fact, figure, type Round } from './figures.ts'
import { createSetup, type Setup, type Undo, undoAll } from './setup.ts'
import { connect, type Tenant } from './tenant.ts'

const fewRows = 1000
/** An organization for so many rows, and at least ten. */
const rowsByOrganization = 1000
const atLeast = 10
/** It is asked nothing: claims look at its name. */
const sandboxes = openCloudDriver('', '')
const regions = onlyRegion({
  warmPool: 0,
  sandboxes,
  relay: { url: undefined, port: 0 },
  resources: present(readResourceSettings('')),
  baseUrls: { anthropic: undefined, openai: undefined, gemini: undefined },
}).all()
const region = present(regions[0])
const outage = new SandboxUnavailableError(new Error('nothing runs here'), { isLogged: true })
const unreachable = { ...sandboxes, observe: () => Promise.reject(outage) }
const unheard = { queue: { enqueue() {} }, log: { warn() {}, error() {} } }
const emptyQueue = {
  countWaiting: async () => 0,
  oldestWaitMs: async () => null,
  check: async () => [],
  ping: async () => true,
}
const listedAtOnce = 500
/** A platform where all runs, for the doctor. */
const healthy = (pool: Setup['pool']) => ({
  ...sandboxes,
  async *list() {
    for (let after = firstId; ; ) {
      const { rows } = await pool.query(
        `SELECT id, 'running' AS state FROM instances WHERE id > $1 ORDER BY id LIMIT ${listedAtOnce}`,
        [after],
      )
      yield* rows
      if (rows.length < listedAtOnce) return
      after = rows.at(-1).id
    }
  },
})
const rounds = 7
const requestsARound = 40
const claimsARound = 20
const looksARound = 20
const scrapesARound = 40
/** Without a secret key, a relay and workers. */
const mostFindings = 5
/** What more rows may cost. */
const mostSlower = 1.5

/** A Chowder whose instances are rows alone. */
interface Side {
  rows: number
  /** A page of instances, the newest of an organization. */
  list(): Promise<unknown>
  /** A page of events, likewise. */
  events(): Promise<unknown>
  /** A worker's look at the next gateways, without the calls of their platform. */
  look(): Promise<unknown>
  /** A scrape of what workers measure of the whole installation. Most of them read no row: those are counted seldom. */
  scrape(): Promise<unknown>
  /** A run of the doctor, without its checks of what is sealed. */
  examine(): Promise<unknown>
  /** The claim of a row, with all others due too. It is rolled back. */
  claim(): Promise<unknown>
  /** Makes all rows due. */
  makeDue(): Promise<unknown>
}

/** Writes rows as they are once a worker has brought their sandboxes up, with the events of that. */
async function fill({ pool }: Setup, organizationIds: string[], rows: number): Promise<void> {
  await pool.query('ALTER TABLE instances DISABLE TRIGGER USER')
  await pool.query(
    `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                            observed_generation, sandbox_id, endpoint, sealed_token, ready_at, created_at, next_attempt_at)
     SELECT gen_random_uuid(), ($1::uuid[])[1 + n % array_length($1, 1)], 'agent ' || n, 'anthropic', $2, 'v1', 'running',
            1, 'sandbox ' || n, '{"kind": "unix", "path": "/none"}', repeat('x', 150), now(),
            now() - n * interval '1 s', now() - interval '1 h'
     FROM generate_series(1, $3::int) AS n`,
    [organizationIds, sandboxes.name, rows],
  )
  await pool.query('ALTER TABLE instances ENABLE TRIGGER USER')
  await pool.query(
    `INSERT INTO events (organization_id, instance_id, type, actor_type, from_status, to_status, created_at)
     SELECT organization_id, id, type, 'key', from_status, to_status, instances.created_at
     FROM instances, (VALUES ('instance.create', NULL, 'provisioning'), ('instance.running', 'provisioning', 'running'))
       AS change (type, from_status, to_status)`,
  )
  await pool.query(
    'UPDATE organizations SET instance_count = (SELECT count(*) FROM instances WHERE organization_id = organizations.id)',
  )
  await pool.query('VACUUM ANALYZE')
}

class RolledBack extends Error {}

async function createSide(undo: Undo, rows: number): Promise<Side> {
  const setup = await createSetup(undo)
  const { pool, chowder } = setup
  const api = await startChowder({ ...chowder, role: 'api' })
  undo.push(() => api.stop('SIGTERM'))
  const tenants: Tenant[] = []
  const ids: string[] = []
  while (ids.length < Math.max(atLeast, rows / rowsByOrganization)) {
    const tenant = await connect(api.url)
    tenants.push(tenant)
    ids.push((await tenant.call<{ id: string }>('GET', '/v1/organization')).id)
  }
  await fill(setup, ids, rows)
  const db = createDb(pool)
  let asked = 0
  const ask = (path: string) => {
    asked += 1
    return (tenants[asked % tenants.length] as Tenant).call('GET', path)
  }
  let afterOrganization = firstId
  const looks = createDriftDetection({ ...region, sandboxes: unreachable, db, ...unheard } as never, () => allShards)
  const metrics = createBacklogMetrics({ db, queue: emptyQueue as never })
  const config = loadConfig({ SANDBOX_DRIVER: 'local' })
  const doctor = {
    config,
    db,
    regions: [{ ...region, sandboxes: healthy(pool) }],
    vault: null,
    queue: emptyQueue,
  } as unknown as DoctorDeps
  return {
    rows,
    list: () => ask('/v1/instances?limit=50'),
    events: () => ask('/v1/organization/events?limit=50'),
    look: () => looks.probeNext(AbortSignal.timeout(60_000)),
    scrape: () => metrics.metrics(),
    async examine() {
      const found = await examine(doctor)
      // A check that finds many faults ends before it has read all rows.
      if (found.length > mostFindings) throw new Error(`the doctor found: ${found[0]?.what}`)
    },
    async claim() {
      const claimed = db.transaction(async (tx) => {
        const taken = await claimDue(tx, { regions, afterOrganization, exceptOrganizations: [] })
        if (!taken) throw new Error('no row was claimed')
        afterOrganization = taken.organizationId
        throw new RolledBack()
      })
      await claimed.catch((error: unknown) => {
        if (!(error instanceof RolledBack)) throw error
      })
    },
    async makeDue() {
      await pool.query('ALTER TABLE instances DISABLE TRIGGER USER')
      await pool.query('UPDATE instances SET generation = 2, ready_at = NULL')
      await pool.query('ALTER TABLE instances ENABLE TRIGGER USER')
      await pool.query('VACUUM ANALYZE instances')
    },
  }
}

async function msOf(act: () => Promise<unknown>, times: number): Promise<number> {
  const startedAt = performance.now()
  for (let done = 0; done < times; done += 1) await act()
  return (performance.now() - startedAt) / times
}

/**
 * Measures lists, claims, checks and scrapes with so many rows, beside the same with a thousand in a database of its
 * own, and how long the doctor takes.
 */
export async function measureRows(rows: number, report: (text: string) => void): Promise<(Fact | Figure)[]> {
  const undo: Undo = []
  try {
    report(`writing ${fewRows} and ${rows} rows`)
    const few = await createSide(undo, fewRows)
    const many = await createSide(undo, rows)

    async function compare(
      name: string,
      what: 'list' | 'events' | 'look' | 'scrape' | 'claim',
      times: number,
    ): Promise<Figure> {
      report(name)
      const sides: Round[] = []
      for (const side of [few, many]) await msOf(side[what], times)
      while (sides.length < rounds) {
        const limit = await msOf(few[what], times)
        sides.push({ limit, chowder: await msOf(many[what], times) })
      }
      return figure(`${name}, ${rows} rows beside ${fewRows}`, 'ms', { atMost: mostSlower }, sides)
    }

    const doctors: Fact[] = []
    for (const { rows, examine } of [few, many]) {
      const name = `the doctor, ${rows} rows`
      report(name)
      doctors.push(fact(name, (await msOf(examine, 1)) / 1000, 's'))
    }
    const figures = [
      await compare('a page of instances', 'list', requestsARound),
      await compare('a page of events', 'events', requestsARound),
      await compare('a look at gateways', 'look', looksARound),
      await compare('a scrape of the metrics, between counts', 'scrape', scrapesARound),
    ]
    report('making all rows due')
    for (const { makeDue } of [few, many]) await makeDue()
    figures.push(await compare('a claim, all rows due', 'claim', claimsARound))
    return [...figures, ...doctors]
  } finally {
    await undoAll(undo)
  }
}
