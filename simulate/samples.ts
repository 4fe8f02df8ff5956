import { readdir, readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { cpuSeconds, residentMb } from '../bench/process.ts'
import { type PartOfDay, partOfDay } from './day.ts'
import type { Fleet } from './fleet.ts'

const everyMs = 5000

/** What the fleet looked like at a moment, and what it used since the sample before. */
export interface Sample {
  part: PartOfDay
  running: number
  due: number
  /** How long the due row that has waited longest has waited, in s; 0 without one. */
  dueAge: number
  /** Cores. */
  database: number
  workers: number
  api: number
  transactionsPerSecond: number
  /** Of the largest worker, and of the API. */
  workerMb: number
  apiMb: number
}

interface Counted {
  at: number
  database: number
  workers: number
  api: number
  transactions: number
}

/** The processor time of PostgreSQL: of its processes, and of those that have ended. */
async function databaseSeconds(postmaster: number): Promise<number> {
  let seconds = await cpuSeconds(postmaster, { withEnded: true })
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const stat = await readFile(`/proc/${name}/stat`, 'utf8').catch(() => '')
    const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1])
    if (parent === postmaster) seconds += await cpuSeconds(Number(name)).catch(() => 0)
  }
  return seconds
}

/** Takes samples until the signal is aborted. `timeNow` is the time of the day. */
export async function takeSamples(fleet: Fleet, timeNow: () => number, signal: AbortSignal): Promise<Sample[]> {
  const { pool, api, workers } = fleet
  const samples: Sample[] = []
  const { rows } = await pool.query<{ pid: number }>(
    `SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int AS pid`,
  )
  const postmaster = rows[0]?.pid ?? 0

  const count = async (): Promise<Counted> => {
    const { rows } = await pool.query<{ transactions: number }>(
      `SELECT (xact_commit + xact_rollback)::float8 AS transactions
       FROM pg_stat_database WHERE datname = current_database()`,
    )
    const each = await Promise.all(workers.map(({ pid }) => cpuSeconds(pid)))
    return {
      at: performance.now(),
      database: await databaseSeconds(postmaster),
      workers: each.reduce((sum, one) => sum + one, 0),
      api: await cpuSeconds(api.pid),
      transactions: rows[0]?.transactions ?? 0,
    }
  }

  let before = await count()
  for (;;) {
    await sleep(everyMs, undefined, { signal }).catch(() => {})
    if (signal.aborted) return samples
    const { rows } = await pool.query<{ running: number; due: number; age: number }>(
      `SELECT (SELECT count(*)::int FROM instances WHERE desired_state = 'running' AND ready_at IS NOT NULL) AS running,
              count(*)::int AS due,
              coalesce(extract(epoch FROM now() - min(greatest(next_attempt_at, lease_until))), 0)::float8 AS age
       FROM instances
       WHERE observed_generation < generation AND lease_until < now() AND next_attempt_at <= now()`,
    )
    const now = await count()
    const seconds = (now.at - before.at) / 1000
    const since = (name: keyof Counted) => (now[name] - before[name]) / seconds
    samples.push({
      part: partOfDay(timeNow()),
      running: rows[0]?.running ?? 0,
      due: rows[0]?.due ?? 0,
      dueAge: Math.max(0, rows[0]?.age ?? 0),
      database: since('database'),
      workers: since('workers'),
      api: since('api'),
      transactionsPerSecond: since('transactions'),
      workerMb: Math.max(...(await Promise.all(workers.map(({ pid }) => residentMb(pid))))),
      apiMb: await residentMb(api.pid),
    })
    before = now
  }
}
