import { Gauge, Registry } from '@prometheus-io/client'
import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { hasStatus, instanceStatuses, isDue, isDueNow, isNotTerminated } from '#instances/status.ts'
import type { MetricSource } from '#platform/metrics.ts'
import { alarmingAttempts } from './failures.ts'
import type { ReconcileQueue } from './queue.ts'

/** What is to stop or to be deleted, and fails at it. Workers never give it up, but somebody has to look. */
export const isFailingEnd = sql`${isDue} AND ${instances.desiredState} <> 'running' AND ${instances.attempts} >= ${alarmingAttempts}`

const counted = (condition: SQL | undefined) => sql<number>`count(*) FILTER (WHERE ${condition})::int`

/**
 * What there is to do, of the whole installation, as the database and the queue say it at that moment: every worker tells
 * the same. For alerts on work that nobody takes, and on ends that keep failing.
 */
export function createBacklogMetrics({ db, queue }: { db: Db; queue: ReconcileQueue }): MetricSource {
  const registry = new Registry()
  const registers = [registry]
  const byStatus = new Gauge({
    name: 'chowder_instances',
    help: 'Instances by status; of the terminated ones those that are not gone yet.',
    labelNames: ['status'] as const,
    registers,
  })
  const due = new Gauge({ name: 'chowder_due_instances', help: 'Instances that wait for a worker.', registers })
  const oldestDue = new Gauge({
    name: 'chowder_oldest_due_seconds',
    help: 'How long the one that waits longest has done so; 0 when none waits.',
    registers,
  })
  const failingEnds = new Gauge({
    name: 'chowder_failing_ends',
    help: `Instances whose stop or delete has failed ${alarmingAttempts} times and more.`,
    registers,
  })
  const waiting = new Gauge({ name: 'chowder_queue_waiting_jobs', help: 'Jobs that wait in the queue.', registers })
  const longestWait = new Gauge({
    name: 'chowder_queue_oldest_waiting_seconds',
    help: 'How long the job that waits longest has done so; 0 when none waits.',
    registers,
  })

  async function askDatabase(): Promise<void> {
    const since = sql`greatest(${instances.leaseUntil}, ${instances.nextAttemptAt})`
    const [row] = await db
      .select({
        provisioning: counted(hasStatus.provisioning),
        running: counted(hasStatus.running),
        stopped: counted(hasStatus.stopped),
        error: counted(hasStatus.error),
        terminated: counted(hasStatus.terminated),
        due: counted(isDueNow),
        oldestDue: sql<number>`coalesce(max(extract(epoch FROM now() - ${since})) FILTER (WHERE ${isDueNow}), 0)::float8`,
        failingEnds: counted(isFailingEnd),
      })
      .from(instances)
      .where(sql`${isNotTerminated} OR ${isDue}`)
    if (!row) return
    for (const status of instanceStatuses) byStatus.set({ status }, row[status])
    due.set(row.due)
    oldestDue.set(row.oldestDue)
    failingEnds.set(row.failingEnds)
  }

  async function askQueue(): Promise<void> {
    const [count, oldestMs] = await Promise.all([queue.countWaiting(), queue.oldestWaitMs()])
    waiting.set(count)
    longestWait.set((oldestMs ?? 0) / 1000)
  }

  return {
    async metrics() {
      await Promise.all([askDatabase(), askQueue()])
      return registry.metrics()
    },
  }
}
