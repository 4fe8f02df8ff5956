import { createHash } from 'node:crypto'
import { Cron } from 'croner'
import type { schedules } from '#database/schedule-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** The fields of a schedule that say when it runs. */
export type Timing = Pick<typeof schedules.$inferSelect, 'id' | 'cron' | 'timeZone' | 'at' | 'jitterSeconds'>

/**
 * Reads five fields of cron. Throws AppError `invalid_value` for another text, and for one that no day fits, such as the
 * 30th of February.
 */
export function readCron(text: string, timezone: string): Cron {
  try {
    const cron = new Cron(text, { timezone, mode: '5-part', paused: true })
    if (cron.nextRun(new Date(0)) !== null) return cron
  } catch {
    // The text of the library names fields that the caller did not write.
  }
  throw new AppError('invalid_value', texts.badCron, { param: 'cron' })
}

/** A part of the jitter that is always the same for a schedule, so that its runs are equally far apart. */
function offsetMs({ id, jitterSeconds }: Timing): number {
  return (createHash('sha256').update(id).digest().readUInt32BE() % (jitterSeconds + 1)) * 1000
}

/**
 * The next times of a schedule after a time, at most `count`. By `croner`: a fixed hour and minute that the clocks skip in
 * spring is the first moment after it, and one that they have twice in autumn is the first of both; other times follow
 * the hours that pass.
 */
export function nextTimes(timing: Timing, after: Date, count: number): Date[] {
  const { cron, timeZone, at } = timing
  if (cron === null) return at && at > after ? [at] : []
  const offset = offsetMs(timing)
  return new Cron(cron, { timezone: timeZone, mode: '5-part', paused: true })
    .nextRuns(count, new Date(after.getTime() - offset))
    .map((time) => new Date(time.getTime() + offset))
}
