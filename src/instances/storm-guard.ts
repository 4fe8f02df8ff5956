import { and, eq, isNotNull, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import type { InstanceQueue } from './queue.ts'

/** Much more than cron and heartbeat of an agent need: a job every minute, with three calls each. */
export const defaultUnattendedCalls = 200

/** Turns are noted every 5 minutes: who has talked within an hour was noted since then. */
const noLongerRecent = sql`now() - interval '65 min'`

interface Storm extends Record<string, unknown> {
  id: string
  calls: number
}

/**
 * The agents with more calls of models in the last hour than may be that nobody asked for: those of cron, and, unless
 * somebody has talked to the agent in this hour through the API or a channel, all others.
 */
const findStorms = sql`
  WITH recent AS (
    SELECT c.instance_id, count(*) FILTER (WHERE c.cause = 'cron') AS of_cron,
      count(*) FILTER (WHERE c.cause IS NULL OR c.cause = 'subagent') AS of_unknown,
      bool_or(c.cause IN ('api', 'channel')) IS TRUE AS is_asked
    FROM model_calls c JOIN instances i ON i.id = c.instance_id
    WHERE c.began_at > now() - interval '1 hour' AND c.began_at > coalesce(i.automation_resumed_at, '-infinity')
      AND i.automation_paused_at IS NULL
    GROUP BY 1
  ), counted AS (
    SELECT r.instance_id, r.of_cron + CASE WHEN r.is_asked OR t.instance_id IS NOT NULL THEN 0 ELSE r.of_unknown END AS calls
    FROM recent r
    LEFT JOIN instance_turns t ON t.instance_id = r.instance_id AND t.asked_at > ${noLongerRecent}
  )
  SELECT i.id, counted.calls::int
  FROM counted JOIN instances i ON i.id = counted.instance_id JOIN organizations o ON o.id = i.organization_id
  CROSS JOIN LATERAL (
    SELECT coalesce(i.unattended_calls_per_hour, o.unattended_calls_per_hour, ${defaultUnattendedCalls}) AS most
  ) AS allowed
  WHERE allowed.most > 0 AND counted.calls > allowed.most`

/**
 * Pauses heartbeat and cron of agents that call models on and on without anybody who asked: workers change their
 * configuration at once, without a restart. Only a request resumes them. Forgets turns that were noted too long ago.
 */
export async function pauseStorms({ db, queue }: { db: Db; queue: InstanceQueue }): Promise<void> {
  await db.execute(sql`DELETE FROM instance_turns WHERE asked_at < ${noLongerRecent}`)
  const { rows } = await db.execute<Storm>(findStorms)
  for (const { id, calls } of rows) {
    const reason = `${calls} calls of models in an hour that nobody asked for. PATCH with automation_paused: false resumes.`
    const [due] = await db
      .update(instances)
      .set({
        ...raiseGeneration('pauseAutomation'),
        changedBy: changedBy({ type: 'instance.automation_paused', reason }),
      })
      .where(
        and(
          eq(instances.id, id),
          isNull(instances.automationPausedAt),
          isNotNull(instances.readyAt),
          eq(instances.desiredState, 'running'),
        ),
      )
      .returning({ id: instances.id })
    if (due) queue.enqueue()
  }
}
