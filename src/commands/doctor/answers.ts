import { sql } from 'drizzle-orm'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import type { Check } from './finding.ts'

/** Workers clear every minute. */
const unclearedMinutes = 60
/** Answers are kept for 24 h; the database's clock may be set a little meanwhile. */
const maxKeptHours = 25

/** I4: answers are kept for the stated time, and no longer: they may hold keys. */
export const expiredAnswers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ n: number }>(sql`
    SELECT count(*)::int AS n FROM idempotency_keys
    WHERE expires_at < now() - make_interval(mins => ${unclearedMinutes})`)
  const expired = rows[0]?.n ?? 0
  if (expired === 0) return
  yield {
    check: 'I4',
    what: `Answers to repeatable requests expired more than ${unclearedMinutes} min ago and are still stored.`,
    whatToDo: 'See that a worker runs: it clears them every minute. With --fix they are cleared now.',
    fix: async () => {
      await clearExpiredAnswers(db)
      return `${expired} expired answers are cleared`
    },
  }
}

/** I4: one key and one body give one answer: there is one for each key, and its end is in sight. */
export const impossibleAnswers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ empty: number; endless: number }>(sql`
    SELECT count(*) FILTER (WHERE sealed_answer IS NULL)::int AS empty,
           count(*) FILTER (WHERE expires_at > now() + make_interval(hours => ${maxKeptHours}))::int AS endless
    FROM idempotency_keys`)
  const { empty = 0, endless = 0 } = rows[0] ?? {}
  if (empty > 0) {
    yield {
      check: 'I4',
      what: `${empty} idempotency keys are taken and have no answer: who repeats such a request gets an error.`,
      whatToDo: `Find them with SELECT organization_id, key FROM idempotency_keys WHERE sealed_answer IS NULL. Delete those rows once you know that their requests created nothing.`,
    }
  }
  if (endless > 0) {
    yield {
      check: 'I4',
      what: `${endless} answers to repeatable requests are kept for longer than 24 h.`,
      whatToDo:
        "See that the database's clock is right. They can be deleted: WHERE expires_at > now() + interval '24 hours'.",
    }
  }
}
