import { Gauge, Registry } from '@prometheus-io/client'
import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { readValue } from '#database/installation.ts'
import { instances } from '#database/schema.ts'
import { hasStatus, instanceStatuses, isDue, isDueNow, isNotTerminated } from '#instances/status.ts'
import { alarmingAttempts } from '#lifecycle/attempt/failures.ts'
import type { MetricSource } from '#platform/metrics.ts'
import type { ReconcileQueue } from './queue.ts'

/** Stops and deletes that keep failing. Workers retry them for ever; an operator must fix the cause. */
export const isFailingEnd = sql`
  ${isDue} AND ${instances.desiredState} <> 'running' AND ${instances.attempts} >= ${alarmingAttempts}`

const count = (condition: SQL | undefined) => sql<number>`count(*) FILTER (WHERE ${condition})::int`

/**
 * Limits how often a scrape counts: at most once in `everyMs`. The counts by status and of budgets read all of them, so
 * they also pause for `pause` times its own duration: a worker uses half a percent of a database core for it.
 */
const countingDefault = { everyMs: 15_000, pause: 200 }

/** Name of the `installation` value that holds the last report of the doctor. */
export const doctorReportName = 'doctor-report'

/**
 * Metrics of the whole installation, read from the database and the queue at a scrape. Every worker reports the same
 * values. Alerts use them: work that no worker claims, stops and deletes that keep failing.
 */
export function createBacklogMetrics({
  db,
  queue,
  counting: { everyMs, pause } = countingDefault,
}: {
  db: Db
  queue: ReconcileQueue
  counting?: typeof countingDefault
}): MetricSource {
  const registry = new Registry()
  const registers = [registry]
  const byStatus = new Gauge({
    name: 'chowder_instances',
    help: 'Instances by status; terminated ones only until their sandbox is destroyed.',
    labelNames: ['status'] as const,
    registers,
  })
  const due = new Gauge({
    name: 'chowder_due_instances',
    help: 'Instances that wait for a worker, by region; without a name for those that have none.',
    labelNames: ['region'] as const,
    registers,
  })
  const oldestDue = new Gauge({
    name: 'chowder_oldest_due_seconds',
    help: 'How long the longest waiting instance has waited for a worker; 0 when none waits.',
    registers,
  })
  const failingEnds = new Gauge({
    name: 'chowder_failing_ends',
    help: `Instances whose stop or delete has failed at least ${alarmingAttempts} times.`,
    registers,
  })
  const waiting = new Gauge({ name: 'chowder_queue_waiting_jobs', help: 'Jobs that wait in the queue.', registers })
  const longestWait = new Gauge({
    name: 'chowder_queue_oldest_waiting_seconds',
    help: 'How long the longest waiting job has waited; 0 when none waits.',
    registers,
  })

  const budgetsByState = new Gauge({
    name: 'chowder_budgets',
    help: 'Budgets by the part of their limit that is used in this period, in percent: 0, 50, 80 or 100 and more.',
    labelNames: ['percent'] as const,
    registers,
  })

  const doctorFindings = new Gauge({
    name: 'chowder_doctor_findings',
    help: 'Findings of the last run of the doctor, by area; absent before the first one.',
    labelNames: ['area'] as const,
    registers,
  })
  const doctorRanAt = new Gauge({
    name: 'chowder_doctor_last_run_timestamp_seconds',
    help: 'When the doctor ran last; absent before it did.',
    registers,
  })

  async function readDoctorReport(): Promise<void> {
    const stored = await readValue(db, doctorReportName)
    if (stored === undefined) return
    const { at, findings }: { at: number; findings: Record<string, number> } = JSON.parse(stored)
    doctorFindings.reset()
    doctorRanAt.set(at)
    for (const [area, n] of Object.entries(findings)) doctorFindings.set({ area }, n)
  }

  /** Returns a function that calls `read` unless it did so a short time ago. A failed call does not count. */
  function atMostEvery(read: () => Promise<unknown>, pauseMs = (tookMs: number) => Math.max(everyMs, pause * tookMs)) {
    let nextAt = Number.NEGATIVE_INFINITY
    return async (): Promise<void> => {
      const startedAt = performance.now()
      if (startedAt < nextAt) return
      nextAt = Number.POSITIVE_INFINITY
      await read().catch((error: unknown) => {
        nextAt = Number.NEGATIVE_INFINITY
        throw error
      })
      nextAt = startedAt + pauseMs(performance.now() - startedAt)
    }
  }

  async function readStatuses(): Promise<void> {
    const [row] = await db
      .select({
        provisioning: count(hasStatus.provisioning),
        running: count(hasStatus.running),
        stopped: count(hasStatus.stopped),
        error: count(hasStatus.error),
        terminated: count(hasStatus.terminated),
      })
      .from(instances)
      .where(sql`${isNotTerminated} OR ${isDue}`)
    if (row) for (const status of instanceStatuses) byStatus.set({ status }, row[status])
  }

  /** Reads only the due rows. */
  async function readDue(): Promise<void> {
    const waitingSince = sql`greatest(${instances.leaseUntil}, ${instances.nextAttemptAt})`
    const secondsWaited = sql`extract(epoch FROM now() - ${waitingSince})`
    const region = sql<string>`coalesce(${instances.region}, '')`
    const rows = await db
      .select({
        region,
        due: count(isDueNow),
        oldestDue: sql<number>`coalesce(max(${secondsWaited}) FILTER (WHERE ${isDueNow}), 0)::float8`,
        failingEnds: count(isFailingEnd),
      })
      .from(instances)
      .where(isDue)
      .groupBy(region)
    due.reset()
    due.set({ region: '' }, 0) // the series always exists, so that alerts can test for its absence
    for (const row of rows) due.set({ region: row.region }, row.due)
    oldestDue.set(Math.max(0, ...rows.map((row) => row.oldestDue)))
    failingEnds.set(rows.reduce((sum, row) => sum + row.failingEnds, 0))
  }

  async function readBudgets(): Promise<void> {
    const { rows } = await db.execute<{ percent: number; count: number }>(sql`
      SELECT level AS percent, count(b.id)::int AS count FROM unnest(ARRAY[0, 50, 80, 100]) AS level
      LEFT JOIN (
        SELECT b.id, coalesce(max(p.noted_percent), 0) AS percent FROM budgets b
        LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.begins_at <= now() AND p.ends_at > now()
        WHERE b.organization_id <> '00000000-0000-0000-0000-000000000000' GROUP BY b.id
      ) b ON b.percent = level
      GROUP BY 1`)
    for (const { percent, count } of rows) budgetsByState.set({ percent }, count)
  }

  async function readQueue(): Promise<void> {
    const [jobs, oldestMs] = await Promise.all([queue.countWaiting(), queue.oldestWaitMs()])
    waiting.set(jobs)
    longestWait.set((oldestMs ?? 0) / 1000)
  }

  const counts = [atMostEvery(readStatuses), atMostEvery(readDue, () => everyMs), atMostEvery(readBudgets)]

  return {
    async metrics() {
      await Promise.all([...counts.map((read) => read()), readQueue(), readDoctorReport()])
      return registry.metrics()
    },
  }
}
