import { and, desc, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { readDatabaseMs } from '#database/clock.ts'
import { after, cutPage } from '#database/page.ts'
import { type Overlap, schedules } from '#database/schedule-schema.ts'
import { instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { isOwnedBy } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { isId, newId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { requireTimeZone } from '#platform/time-zone.ts'
import { parseTimestamp } from '#platform/timestamps.ts'
import { nextTimes, readCron } from './times.ts'

/** Maximum schedules of an instance: as many as it may have background turns. */
const maxSchedules = 100

export type Schedule = typeof schedules.$inferSelect

/** The fields of a schedule in the API; undefined for those that a call leaves as they are. */
export interface ScheduleFields {
  name?: string
  cron?: string
  time_zone?: string
  at?: string
  input?: string
  session_id?: string
  model?: string
  overlap?: Overlap
  catch_up_seconds?: number
  jitter_seconds?: number
  pause_on_failures?: number | null
  paused?: boolean
}

const inputPlace = (id: string) => `schedules/${id}/sealed_input` as const

export const unsealInput = (vault: Vault, { id, sealedInput }: Schedule): string =>
  vault.unseal(sealedInput, inputPlace(id))

const defaultsOf = (id: string) => ({
  cron: null,
  timeZone: 'UTC',
  at: null,
  sessionKey: sessionKey(`schedule-${id}`),
  model: 'openclaw',
  overlap: 'skip' as Overlap,
  catchUpSeconds: 3600,
  jitterSeconds: 0,
  pauseOnFailures: null,
  pausedFor: null,
})

/** The columns of the fields that a call sends. Throws AppError `invalid_value`. */
function columnsOf(id: string, vault: Vault, sent: ScheduleFields) {
  const { cron, at, time_zone: timeZone, input } = sent
  if (cron !== undefined && at !== undefined) throw new AppError('invalid_value', texts.cronAndAt, { param: 'at' })
  if (timeZone !== undefined) requireTimeZone(timeZone)
  const time = at === undefined ? null : parseTimestamp(at)
  if (at !== undefined && time === null) throw new AppError('invalid_value', texts.badAt, { param: 'at' })
  return {
    ...(sent.name !== undefined && { name: sent.name }),
    ...(cron !== undefined && { cron, at: null }),
    ...(time !== null && { cron: null, at: time }),
    ...(timeZone !== undefined && { timeZone }),
    ...(input !== undefined && { sealedInput: vault.seal(input, inputPlace(id)) }),
    ...(sent.session_id !== undefined && { sessionKey: sessionKey(sent.session_id, 'session_id') }),
    ...(sent.model !== undefined && { model: sent.model }),
    ...(sent.overlap !== undefined && { overlap: sent.overlap }),
    ...(sent.catch_up_seconds !== undefined && { catchUpSeconds: sent.catch_up_seconds }),
    ...(sent.jitter_seconds !== undefined && { jitterSeconds: sent.jitter_seconds }),
    ...(sent.pause_on_failures !== undefined && { pauseOnFailures: sent.pause_on_failures }),
    ...(sent.paused !== undefined && { pausedFor: sent.paused ? ('owner' as const) : null, failures: 0 }),
  }
}

/** The first time after now of a schedule that runs. Throws AppError `invalid_value` when it has none. */
async function firstTime(db: Db, timing: Parameters<typeof nextTimes>[0]): Promise<Date> {
  if (timing.cron !== null) readCron(timing.cron, timing.timeZone)
  const [time] = nextTimes(timing, new Date(await readDatabaseMs(db)), 1)
  if (!time) throw new AppError('invalid_value', texts.pastAt, { param: 'at' })
  return time
}

/**
 * Creates a schedule, in a transaction. Throws AppError `invalid_value`, `instance_not_found`, `instance_terminated` and
 * `too_many_resources`.
 */
export async function createSchedule(
  tx: Db,
  vault: Vault,
  { organizationId, id: instanceId }: { organizationId: string; id: string },
  sent: ScheduleFields & { input: string },
): Promise<Schedule> {
  const id = newId()
  if (sent.cron === undefined && sent.at === undefined)
    throw new AppError('invalid_value', texts.noTimes, { param: 'cron' })
  const columns = { ...defaultsOf(id), name: sent.name ?? '', ...columnsOf(id, vault, sent) }
  const timing = { id, ...columns }
  const nextAt = await firstTime(tx, timing)
  const isLiving = and(isOwnedBy(organizationId, instanceId), isNotTerminated)
  const [living] = await tx.select({ id: instances.id }).from(instances).where(isLiving).for('no key update')
  if (!living) throw new AppError('instance_terminated', texts.isTerminated)
  const existing = await tx.$count(schedules, eq(schedules.instanceId, instanceId))
  if (existing >= maxSchedules) throw new AppError('too_many_resources', texts.tooManySchedules(maxSchedules))
  const [row] = await tx
    .insert(schedules)
    .values({
      ...timing,
      sealedInput: vault.seal(sent.input, inputPlace(id)),
      organizationId,
      instanceId,
      nextAt: columns.pausedFor ? null : nextAt,
    })
    .returning()
  await recordEvent(tx, { organizationId, instanceId, subject: id })
  return row as Schedule
}

const isOwned = (instanceId: string, id: string) => and(eq(schedules.id, id), eq(schedules.instanceId, instanceId))

/** Throws AppError `not_found` for an id that is missing, malformed or of another instance. */
export async function getSchedule(db: Db, instanceId: string, id: string): Promise<Schedule> {
  const [row] = isId(id) ? await db.select().from(schedules).where(isOwned(instanceId, id)) : []
  if (!row) throw new AppError('not_found', texts.scheduleNotFound)
  return row
}

/** A page of the schedules of an instance, newest first. */
export async function listSchedules(
  db: Db,
  { organizationId, id: instanceId }: { organizationId: string; id: string },
  { limit, position }: { limit: number; position: string | undefined },
) {
  const rows = await db
    .select()
    .from(schedules)
    .where(
      and(
        eq(schedules.instanceId, instanceId),
        position === undefined ? undefined : after(schedules, organizationId, position),
      ),
    )
    .orderBy(desc(schedules.createdAt), desc(schedules.id))
    .limit(limit + 1)
  return cutPage(rows, limit)
}

/** Locks a schedule until the end of a transaction. Throws AppError `not_found`. */
async function lockSchedule(tx: Db, instanceId: string, id: string): Promise<Schedule> {
  await getSchedule(tx, instanceId, id)
  const [row] = await tx.select().from(schedules).where(isOwned(instanceId, id)).for('update')
  if (!row) throw new AppError('not_found', texts.scheduleNotFound)
  return row
}

/**
 * Changes what is sent. Other times, and the end of a pause, begin with the next time after now. Throws AppError
 * `not_found` and `invalid_value`.
 */
export const patchSchedule = (
  db: Db,
  vault: Vault,
  instanceId: string,
  id: string,
  sent: ScheduleFields,
): Promise<Schedule> =>
  db.transaction(async (tx) => {
    const row = await lockSchedule(tx, instanceId, id)
    const columns = columnsOf(row.id, vault, sent)
    const changed = { ...row, ...columns }
    const hasOtherTimes = ['cron', 'at', 'timeZone', 'jitterSeconds'].some((name) => name in columns)
    const begins = changed.pausedFor === null && (hasOtherTimes || row.pausedFor !== null)
    // Checked for a paused one too: it must be possible to end the pause.
    const first = begins || hasOtherTimes ? await firstTime(tx, changed) : null
    const [patched] = await tx
      .update(schedules)
      .set({
        ...columns,
        id: row.id,
        ...(begins && { nextAt: first, waitingSince: null }),
        ...(changed.pausedFor !== null && { nextAt: null, waitingSince: null, isAskedFor: false }),
      })
      .where(isOwned(instanceId, row.id))
      .returning()
    await recordEvent(tx, { organizationId: row.organizationId, instanceId, subject: row.id })
    return patched as Schedule
  })

/** Deletes a schedule; its last run goes on. Throws AppError `not_found`. */
export const deleteSchedule = (db: Db, instanceId: string, id: string): Promise<void> =>
  db.transaction(async (tx) => {
    const row = await lockSchedule(tx, instanceId, id)
    await tx.delete(schedules).where(isOwned(instanceId, row.id))
    await recordEvent(tx, { organizationId: row.organizationId, instanceId, subject: row.id })
  })

/**
 * Makes a schedule due now, also a paused one, once. Its next time stays. Call it in a transaction. Throws AppError
 * `not_found`.
 */
export async function askForRun(tx: Db, instanceId: string, id: string): Promise<Schedule> {
  const row = await lockSchedule(tx, instanceId, id)
  const [asked] = await tx
    .update(schedules)
    .set({ isAskedFor: true, nextAt: sql`now()` })
    .where(isOwned(instanceId, row.id))
    .returning()
  await recordEvent(tx, { organizationId: row.organizationId, instanceId, subject: row.id })
  return asked as Schedule
}
