import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { type ResponseStatus, responses } from '#database/response-schema.ts'
import { type ScheduleRun, schedules } from '#database/schedule-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type Schedule, unsealInput } from './store.ts'
import { nextTimes } from './times.ts'

/** How often this process looks for runs that are due, in ms. */
const everyMs = 1000
/** Runs that begin at once. Each holds a connection for some milliseconds. */
const loops = 4
/** How often a run that waits for the one before it looks whether that has ended. */
const waitingEveryMs = 2000
const keptRuns = 20

type Run = Pick<Schedule, 'organizationId' | 'instanceId' | 'sessionKey' | 'model'> & { input: string }

export interface RunParts {
  db: Db
  vault: Vault
  /** Stores a background turn in a transaction, and returns the id of its row. Throws AppError when it is refused. */
  begin(tx: Db, turn: Run): Promise<string>
  /** Cancels a response in progress; does nothing for one that has ended. */
  cancel(instance: Pick<Schedule, 'organizationId' | 'instanceId'>, responseId: string): Promise<void>
  /** The id of a response for clients. */
  showId(responseId: string): string
  log: Pick<Logger, 'error' | 'warn' | 'info'>
}

interface Claimed {
  schedule: Schedule
  /** By the clock of the database. */
  now: Date
  /** Whether the instance was deleted. */
  isGone: boolean
}

const claimQuery = `
  SELECT s.id, now() AS now, i.desired_state = 'terminated' AS "isGone"
  FROM schedules s JOIN instances i ON i.id = s.instance_id JOIN organizations o ON o.id = s.organization_id
  WHERE s.next_at <= now() AND o.suspended_at IS NULL AND o.deleted_at IS NULL
  ORDER BY s.next_at LIMIT 1 FOR UPDATE OF s SKIP LOCKED`

async function claim(tx: Db): Promise<Claimed | null> {
  const { rows } = await tx.$client.query<{ id: string; now: Date; isGone: boolean }>(claimQuery)
  const [found] = rows
  if (!found) return null
  const [schedule] = await tx.select().from(schedules).where(eq(schedules.id, found.id))
  return schedule ? { schedule, now: found.now, isGone: found.isGone } : null
}

async function statusOf(tx: Db, responseId: string | null): Promise<ResponseStatus | null> {
  if (responseId === null) return null
  const [row] = await tx.select({ status: responses.status }).from(responses).where(eq(responses.id, responseId))
  return row?.status ?? null
}

/**
 * Begins the runs that are due, until it is closed. Each is decided, begun and recorded in one transaction, so that it
 * begins once, whichever process is killed: its turn is a background turn from then on.
 */
export function beginSchedules({ db, vault, begin, cancel, showId, log }: RunParts) {
  /** Stores the outcome of a run, and when the next one is due. */
  async function record(
    tx: Db,
    { schedule, now }: Claimed,
    failures: number,
    run: { outcome: ScheduleRun['outcome']; responseId?: string | null; reason?: string },
  ): Promise<void> {
    const { id, organizationId, instanceId, pauseOnFailures, nextAt, waitingSince } = schedule
    const { outcome, responseId = null, reason } = run
    const isTooOften = pauseOnFailures !== null && failures >= pauseOnFailures
    const pausedFor = schedule.pausedFor ?? (isTooOften ? ('failures' as const) : null)
    const shown: ScheduleRun = {
      due_at: toMicroseconds(waitingSince ?? nextAt ?? now),
      at: toMicroseconds(now),
      outcome,
      response_id: responseId && showId(responseId),
      reason: reason ?? null,
    }
    // A run that goes on is the one that the next run meets.
    const lastResponseId = responseId ?? (outcome === 'skipped' ? schedule.lastResponseId : null)
    await tx
      .update(schedules)
      .set({
        failures,
        pausedFor,
        nextAt: pausedFor ? null : (nextTimes(schedule, now, 1)[0] ?? null),
        waitingSince: null,
        isAskedFor: false,
        lastResponseId,
        runs: [shown, ...schedule.runs].slice(0, keptRuns),
      })
      .where(eq(schedules.id, id))
    const event = { organizationId, instanceId, subject: id }
    const text = outcome === 'started' && shown.response_id ? `It began ${shown.response_id}.` : reason
    await recordEvent(tx, { ...event, type: `schedule.${outcome}`, ...(text !== undefined && { reason: text }) })
    if (isTooOften && schedule.pausedFor === null) {
      await recordEvent(tx, { ...event, type: 'schedule.paused', reason: texts.failedRuns(failures) })
    }
  }

  async function decide(tx: Db, claimed: Claimed): Promise<void> {
    const { schedule, now } = claimed
    const { id, nextAt, waitingSince, isAskedFor, overlap, catchUpSeconds, lastResponseId } = schedule
    const status = await statusOf(tx, lastResponseId)
    const isRunning = status === 'in_progress'
    const hasFailed = status === 'failed'
    const hasEnded = !isRunning && status !== null
    const failures = hasEnded ? (hasFailed ? schedule.failures + 1 : 0) : schedule.failures
    // Counted once: the next run does not see it.
    if (hasEnded) claimed.schedule = { ...schedule, lastResponseId: null, failures }
    const { pauseOnFailures } = schedule
    if (hasFailed && pauseOnFailures !== null && failures >= pauseOnFailures && !isAskedFor) {
      return record(tx, claimed, failures, { outcome: 'skipped', reason: texts.failedRuns(failures) })
    }
    const lateMs = now.getTime() - (nextAt ?? now).getTime()
    if (!isAskedFor && waitingSince === null && lateMs > catchUpSeconds * 1000) {
      return record(tx, claimed, failures, { outcome: 'skipped', reason: texts.missedRun(catchUpSeconds) })
    }
    if (isRunning && overlap === 'skip') {
      return record(tx, claimed, failures, { outcome: 'skipped', reason: texts.overlappingRun })
    }
    if (isRunning && overlap === 'buffer_one') {
      const next = new Date(now.getTime() + waitingEveryMs)
      const since = waitingSince ?? nextAt
      await tx.update(schedules).set({ nextAt: next, waitingSince: since }).where(eq(schedules.id, id))
      return
    }
    if (isRunning && lastResponseId !== null) await cancel(schedule, lastResponseId)
    try {
      const { organizationId, instanceId, sessionKey, model } = schedule
      const input = unsealInput(vault, schedule)
      const responseId = await begin(tx, { organizationId, instanceId, sessionKey, model, input })
      await record(tx, claimed, failures, { outcome: 'started', responseId })
    } catch (error) {
      if (!(error instanceof AppError)) throw error
      await record(tx, claimed, failures + 1, { outcome: 'failed', reason: error.message })
    }
  }

  /** Begins the longest due run. Returns whether there was one. */
  async function runNext(): Promise<boolean> {
    let claimed: Claimed | null = null
    try {
      return await db.transaction(async (tx) => {
        claimed = await claim(tx)
        if (claimed?.isGone) await tx.delete(schedules).where(eq(schedules.id, claimed.schedule.id))
        else if (claimed) await decide(tx, claimed)
        return claimed !== null
      })
    } catch (err) {
      const failed = claimed as Claimed | null
      if (failed === null || isDatabaseDown(err)) throw err
      // Others must not wait for it.
      log.error({ err, scheduleId: failed.schedule.id }, 'a scheduled run could not begin')
      const run = { outcome: 'failed' as const, reason: texts.internal }
      await db.transaction((tx) => record(tx, failed, failed.schedule.failures + 1, run))
      return true
    }
  }

  let isClosed = false
  let running: Promise<unknown> | null = null
  const outage = logFirstAndRecovery(log, 'scheduled runs could not begin', 'scheduled runs begin again')
  const loop = async () => {
    while (!isClosed && (await runNext()));
  }
  const timer = setInterval(() => {
    running ??= runNext()
      .then(async (wasDue) => {
        if (wasDue) await Promise.all(Array.from({ length: loops }, loop))
      })
      .then(outage.recovered, outage.failed)
      .finally(() => {
        running = null
      })
  }, everyMs).unref()
  return {
    /** Resolves once the runs that it decides are stored. */
    async close() {
      isClosed = true
      clearInterval(timer)
      await running
    },
  }
}
