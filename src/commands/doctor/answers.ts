import { sql } from 'drizzle-orm'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import type { Check } from './finding.ts'

/** Workers delete expired answers every minute. */
const undeletedMinutes = 60
/** Answers are kept for 24 h by the clock of the database, which may be set a little in the meantime. */
const maxKeptHours = 25

/** I4: answers to requests with an Idempotency-Key, which may contain keys, are not kept longer than promised. */
export const expiredAnswers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ n: number }>(sql`
    SELECT count(*)::int AS n FROM idempotency_keys
    WHERE expires_at < now() - make_interval(mins => ${undeletedMinutes})`)
  const expired = rows[0]?.n ?? 0
  if (expired === 0) return
  yield {
    area: 'answers',
    what: `${expired} idempotency answers expired more than ${undeletedMinutes} min ago and are still stored.`,
    whatToDo: 'Check that a worker runs: it deletes them every minute. With --fix they are deleted now.',
    fix: async () => {
      await clearExpiredAnswers(db)
      return `${expired} expired idempotency answers are deleted`
    },
  }
}

/** I4: no answer is kept for longer than 24 h. */
export const impossibleAnswers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ endless: number }>(sql`
    SELECT count(*)::int AS endless FROM idempotency_keys
    WHERE expires_at > now() + make_interval(hours => ${maxKeptHours})`)
  const endless = rows[0]?.endless ?? 0
  if (endless > 0) {
    yield {
      area: 'answers',
      what: `${endless} idempotency answers are kept for longer than 24 h.`,
      whatToDo: "Check the clock of the database. Then delete them: WHERE expires_at > now() + interval '24 hours'.",
    }
  }
}
