import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { regionOf } from '#instances/regions.ts'
import { isDue } from '#instances/status.ts'
import { isFailingEnd } from '#lifecycle/backlog.ts'
import { alarmingAttempts } from '#lifecycle/failures.ts'
import type { Check, DoctorDeps } from './finding.ts'
import { findDue, searchInstances } from './instances.ts'
import { endLease, makeDue, tryNow } from './repairs.ts'

/** A lease lasts 30 s by the clock of the database, which may be set a little in the meantime. */
const maxLeaseSeconds = 60
/** The longest pause between attempts is 10 min. */
const maxPauseSeconds = 15 * 60
/** The sweep enqueues due rows every 5 s. */
const untakenMinutes = 5

const minutes = (seconds: unknown) => `${Math.round(Number(seconds) / 60)} min`

const retry = (db: Db, row: Parameters<typeof tryNow>[1], done: string) => async () =>
  (await tryNow(db, row, 'The operator had the instance tried again.')) ? done : null

/** The leases that are too long: all of those of due rows, which an index has, and then the others. */
async function* findLongLeases(deps: DoctorDeps) {
  const isTooLong = sql`lease_until > now() + make_interval(secs => ${maxLeaseSeconds})`
  const columns = sql`, lease_token::int8 AS token, lease_until::text AS until,
    extract(epoch FROM lease_until - now()) AS left`
  type Lease = { token: string; until: string; left: string }
  yield* findDue<Lease>(deps, isTooLong, columns)
  yield* searchInstances<Lease>(deps, 'impossibleTimes', sql`NOT (${isDue}) AND ${isTooLong}`, columns)
}

/** I2: no lease and no pause is longer than Chowder makes them. */
export const impossibleTimes: Check = async function* (deps) {
  const { db } = deps
  for await (const { id, token, until, left } of findLongLeases(deps)) {
    yield {
      area: 'instances',
      what: `The lease of the instance ${id} ends at ${until}: no lease lasts that long.`,
      whatToDo: 'With --fix the lease is ended, and workers can take the row again.',
      version: token,
      fix: async () =>
        (await endLease(db, { id, leaseToken: Number(token), leaseUntil: until }, 'The operator ended the lease.'))
          ? `the lease of ${id} is ended ${minutes(left)} early`
          : null,
    }
  }
  const isPostponedTooLong = sql`next_attempt_at > now() + make_interval(secs => ${maxPauseSeconds})`
  const nextAttempt = sql`, next_attempt_at::text AS until`
  for await (const row of findDue<{ until: string }>(deps, isPostponedTooLong, nextAttempt)) {
    yield {
      area: 'instances',
      what: `The next attempt for the instance ${row.id} is at ${row.until}: no pause lasts that long.`,
      whatToDo: 'With --fix the instance is tried again now.',
      version: row.generation,
      fix: retry(db, row, `${row.id} is tried again now`),
    }
  }
}

/** I2: workers take due rows, which the sweep enqueues every few seconds. */
export const untakenRows: Check = async function* (deps) {
  const { db, regions } = deps
  const since = sql`greatest(lease_until, next_attempt_at)`
  const isUntaken = sql`${since} < now() - make_interval(mins => ${untakenMinutes})`
  const waited = sql`, extract(epoch FROM now() - ${since}) AS waited`
  for await (const row of findDue<{ waited: string }>(deps, isUntaken, waited)) {
    const { id, generation, region, sandbox_driver: sandboxDriver } = row
    const isKnown = regionOf(regions, { region, sandboxDriver }) !== undefined
    const missing =
      region === null
        ? `Start a worker with SANDBOX_DRIVER=${sandboxDriver}: no other worker takes the instance.`
        : `Name the region ${region}, with the driver ${sandboxDriver}, in CHOWDER_CONFIG_FILE: no worker has it.`
    yield {
      area: 'instances',
      what: `The instance ${id} should be ${row.desired_state}, and no worker has taken it for ${untakenMinutes} min.`,
      whatToDo: isKnown
        ? `Check that a worker ${region === null ? '' : `of the region ${region} `}runs, and read its log. With --fix the next sweep enqueues the instance again.`
        : missing,
      version: generation,
      ...(isKnown && { fix: retry(db, row, `the next sweep enqueues ${id}, which waited for ${minutes(row.waited)}`) }),
    }
  }
}

/** I1: instances that should stop or be deleted do so. */
export const failingEnds: Check = async function* (deps) {
  for await (const row of findDue(deps, isFailingEnd)) {
    const intent = row.desired_state === 'terminated' ? 'delete' : 'stop'
    yield {
      area: 'sandboxes',
      what: `The ${intent} of the instance ${row.id} has failed ${alarmingAttempts} times or more.`,
      whatToDo:
        'Find the cause in the log of the workers, under "step failed" with this id, and remove it. With --fix the ' +
        `${intent} is tried again now instead of in up to 10 min.`,
      version: row.generation,
      fix: retry(deps.db, row, `the ${intent} of ${row.id} is tried again now, after ${row.attempts} attempts`),
    }
  }
}

interface Fault {
  condition: SQL
  what: string
  /** Columns that the repair sets when it makes the row due; absent when a worker cannot repair the fault. */
  columns?: Parameters<typeof makeDue>[3]
  whatToDo?: string
}

const isSettled = sql`observed_generation = generation`

const faults: readonly Fault[] = [
  {
    condition: sql`observed_generation > generation`,
    what: 'its observed generation is higher than its generation',
    columns: {},
  },
  {
    condition: sql`desired_state <> 'running' AND ready_at IS NOT NULL`,
    what: 'it is marked as ready, and should not run',
    columns: { readyAt: null },
  },
  {
    condition: sql`${isSettled} AND desired_state = 'running' AND ready_at IS NOT NULL AND endpoint IS NULL`,
    what: 'it is ready without an endpoint',
    columns: {},
  },
  {
    condition: sql`${isSettled} AND desired_state = 'running' AND ready_at IS NULL AND error_message IS NULL`,
    what: 'it is in error without a reason',
    columns: {},
  },
  {
    condition: sql`${isSettled} AND step IS NOT NULL AND lease_until < now()`,
    what: 'it is settled in the middle of a step',
    columns: {},
  },
  {
    condition: sql`desired_state = 'terminated' AND terminated_at IS NULL`,
    what: 'it is terminated without a time',
    columns: { terminatedAt: sql`now()` },
  },
  {
    condition: sql`desired_state <> 'terminated' AND terminated_at IS NOT NULL`,
    what: 'it was terminated, and should run or be stopped',
    whatToDo: 'Delete it through the API, and find in its events who changed it.',
  },
  {
    condition: sql`generation < 1 OR observed_generation < 0 OR attempts < 0 OR lease_token < 0`,
    what: 'one of its counters is negative',
    whatToDo: 'Somebody has changed the table by hand: restore the row from a backup.',
  },
]

const conditions = faults.map(({ condition }) => sql`(${condition})`)
const isFaulty = sql.join(conditions, sql` OR `)
/** For each of `faults`, whether the row has it. */
const hasFaults = sql`, array[${sql.join(conditions, sql`, `)}] AS has`

/** I2: no row is in a state that Chowder never writes. */
export const impossibleRows: Check = async function* (deps) {
  type Has = { has: (boolean | null)[] }
  for await (const row of searchInstances<Has>(deps, 'impossibleRows', isFaulty, hasFaults)) {
    for (const { what, columns, whatToDo } of faults.filter((_, index) => row.has[index])) {
      const reason = `The doctor found that ${what}.`
      yield {
        area: 'instances',
        what: `The instance ${row.id} is in an impossible state: ${what}.`,
        whatToDo: whatToDo ?? 'With --fix the row is due again, and a worker corrects it.',
        version: row.generation,
        ...(columns && {
          fix: async () => ((await makeDue(deps.db, row, reason, columns)) ? `${row.id} is due again: ${what}` : null),
        }),
      }
    }
  }
}
