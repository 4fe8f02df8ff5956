import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { isDue } from '#instances/status.ts'
import { isFailingEnd } from '#lifecycle/backlog.ts'
import { alarmingAttempts } from '#lifecycle/failures.ts'
import type { Check } from './finding.ts'
import { pageSize } from './finding.ts'
import { endLease, makeDue, tryNow } from './repairs.ts'

/** A take and each renewal hold for 30 s by the database's clock, which may be set a little meanwhile. */
const maxLeaseSeconds = 60
/** The longest pause between attempts is 10 min. */
const maxPauseSeconds = 15 * 60
/** A sweep rings every 5 s. */
const untakenMinutes = 5

const firstId = '00000000-0000-0000-0000-000000000000'

interface Row {
  id: string
  generation: number
  desired_state: 'running' | 'stopped' | 'terminated'
  sandbox_driver: string
  attempts: number
  [further: string]: unknown
}

/** Instances of which something holds, a page at a time. */
export async function* instancesWhere<Further extends Record<string, unknown>>(
  db: Db,
  condition: SQL,
  further: SQL = sql``,
): AsyncGenerator<(Row & Further)[]> {
  for (let after = firstId; ; ) {
    const { rows } = await db.execute<Row & Further>(sql`
      SELECT id, generation, desired_state, sandbox_driver, attempts ${further} FROM ${instances}
      WHERE id > ${after} AND (${condition}) ORDER BY id LIMIT ${pageSize}`)
    yield rows as (Row & Further)[]
    const last = rows.at(-1)
    if (!last || rows.length < pageSize) return
    after = last.id
  }
}

const minutes = (seconds: unknown) => `${Math.round(Number(seconds) / 60)} min`

/** I2: every state that passes has a deadline: no lease and no pause is longer than they are ever made. */
export const impossibleTimes: Check = async function* ({ db }) {
  const isHeldTooLong = sql`lease_until > now() + make_interval(secs => ${maxLeaseSeconds})`
  const isPutOffTooLong = sql`${isDue} AND next_attempt_at > now() + make_interval(secs => ${maxPauseSeconds})`
  const held = sql`, lease_token::int8 AS token, lease_until::text AS until, extract(epoch FROM lease_until - now()) AS ahead`
  for await (const page of instancesWhere<{ token: string; until: string; ahead: string }>(db, isHeldTooLong, held)) {
    for (const { id, token, until, ahead } of page) {
      yield {
        check: 'I2',
        what: `The instance ${id} is held for ever: its lease ends ${until}.`,
        whatToDo: 'Run it with --fix: the lease is ended, and workers can take the row again.',
        seen: token,
        fix: async () =>
          (await endLease(db, { id, leaseToken: Number(token), leaseUntil: until }, 'The operator ended its lease.'))
            ? `the lease of ${id}, which had ${minutes(ahead)} to go, is ended`
            : null,
      }
    }
  }
  const putOff = sql`, next_attempt_at::text AS until`
  for await (const page of instancesWhere<{ until: string }>(db, isPutOffTooLong, putOff)) {
    for (const row of page) {
      yield {
        check: 'I2',
        what: `The instance ${row.id} is to be tried again at ${row.until} only: no pause is that long.`,
        whatToDo: 'Run it with --fix: it is tried again now.',
        seen: row.generation,
        fix: async () =>
          (await tryNow(db, row, 'The operator had it tried again.')) ? `${row.id} is tried again now` : null,
      }
    }
  }
}

/** I2: due rows are taken: a sweep rings for them every few seconds. */
export const untakenRows: Check = async function* ({ db, sandboxes }) {
  const isUntaken = sql`${isDue} AND greatest(lease_until, next_attempt_at) < now() - make_interval(mins => ${untakenMinutes})`
  const since = sql`, extract(epoch FROM now() - greatest(lease_until, next_attempt_at)) AS waited`
  for await (const page of instancesWhere<{ waited: string }>(db, isUntaken, since)) {
    for (const row of page) {
      const { id, generation, sandbox_driver: driver } = row
      const isOurs = driver === sandboxes.name
      yield {
        check: 'I2',
        what: `The instance ${id} is to be made ${row.desired_state}, and no worker has taken it for over ${untakenMinutes} min.`,
        whatToDo: isOurs
          ? 'See that a worker runs and what its log says. With --fix the row is rung for anew.'
          : `Start a worker with SANDBOX_DRIVER=${driver}: only such a one takes it.`,
        seen: generation,
        ...(isOurs && {
          fix: async () =>
            (await tryNow(db, row, 'The operator had it tried again.'))
              ? `${id}, which had waited ${minutes(row.waited)}, is rung for anew`
              : null,
        }),
      }
    }
  }
}

/** I1: what is to end does end. */
export const failingEnds: Check = async function* ({ db }) {
  for await (const page of instancesWhere(db, isFailingEnd)) {
    for (const row of page) {
      const act = row.desired_state === 'terminated' ? 'delete' : 'stop'
      yield {
        check: 'I1',
        what: `The ${act} of the instance ${row.id} has failed ${alarmingAttempts} times and more.`,
        whatToDo: `Find the cause in the worker's log, under "step failed" with this id, and end it. With --fix it is tried again now instead of in up to 10 min.`,
        seen: row.generation,
        fix: async () =>
          (await tryNow(db, row, `The operator had the ${act} tried again.`))
            ? `the ${act} of ${row.id}, after ${row.attempts} attempts, is tried again now`
            : null,
      }
    }
  }
}

interface Fault {
  is: SQL
  what: string
  /** What is set beside the raised generation; left out for what no worker can make good. */
  also?: Parameters<typeof makeDue>[3]
  whatToDo?: string
}

const isSettled = sql`observed_generation = generation`

const faults: readonly Fault[] = [
  { is: sql`observed_generation > generation`, what: 'more was worked off than was asked for', also: {} },
  {
    is: sql`desired_state <> 'running' AND ready_at IS NOT NULL`,
    what: 'it counts as ready, and is not to run',
    also: { readyAt: null },
  },
  {
    is: sql`${isSettled} AND desired_state = 'running' AND ready_at IS NOT NULL AND endpoint IS NULL`,
    what: 'it runs, and nobody knows where',
    also: {},
  },
  {
    is: sql`${isSettled} AND desired_state = 'running' AND ready_at IS NULL AND error_message IS NULL`,
    what: 'it is in error for no reason',
    also: {},
  },
  {
    is: sql`${isSettled} AND step IS NOT NULL AND lease_until < now()`,
    what: 'it is at rest, and in the middle of a step',
    also: {},
  },
  {
    is: sql`desired_state = 'terminated' AND terminated_at IS NULL`,
    what: 'it is terminated, and nobody knows since when',
    also: { terminatedAt: sql`now()` },
  },
  {
    is: sql`desired_state <> 'terminated' AND terminated_at IS NOT NULL`,
    what: 'it was terminated, and lives again',
    whatToDo: 'Delete it through the API, and find in its events who brought it back.',
  },
  {
    is: sql`generation < 1 OR observed_generation < 0 OR attempts < 0 OR lease_token < 0`,
    what: 'its counters are below zero',
    whatToDo: 'Somebody has written the table by hand: restore the row from a backup.',
  },
]

/** I2: no row is in a state that nothing can have led to. */
export const impossibleRows: Check = async function* ({ db }) {
  for (const { is, what, also, whatToDo } of faults) {
    for await (const page of instancesWhere(db, is)) {
      for (const row of page) {
        const reason = `The operator's doctor found: ${what}.`
        yield {
          check: 'I2',
          what: `The instance ${row.id} is in an impossible state: ${what}.`,
          whatToDo: whatToDo ?? 'Run it with --fix: a worker makes it again as it is wanted.',
          seen: row.generation,
          ...(also && {
            fix: async () => ((await makeDue(db, row, reason, also)) ? `${row.id} is due again: ${what}` : null),
          }),
        }
      }
    }
  }
}
