import { sql } from 'drizzle-orm'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import type { Check } from './finding.ts'

/** Workers delete expired answers every minute. */
const undeletedMinutes = 60
/** Answers are kept for 24 h by the clock of the database, which may be set a little in the meantime. */
const maxKeptHours = 25
/** A request in progress claims its key for a minute at a time. */
const maxClaimMinutes = 5

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

/** I4: every idempotency key has one answer, which expires in time. */
export const impossibleAnswers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ unanswered: number; endless: number }>(sql`
    SELECT (SELECT count(*)::int FROM idempotency_keys
            WHERE sealed_answer IS NULL AND expires_at > now() + make_interval(mins => ${maxClaimMinutes})) AS unanswered,
           (SELECT count(*)::int FROM idempotency_keys
            WHERE expires_at > now() + make_interval(hours => ${maxKeptHours})) AS endless`)
  const { unanswered = 0, endless = 0 } = rows[0] ?? {}
  if (unanswered > 0) {
    yield {
      area: 'answers',
      what: `${unanswered} idempotency keys have no answer, and no request claims them: a repetition of their requests is refused.`,
      whatToDo: `Find them with SELECT organization_id, key FROM idempotency_keys WHERE sealed_answer IS NULL AND expires_at > now() + interval '${maxClaimMinutes} minutes'. Delete those rows after you have checked that their requests changed nothing.`,
    }
  }
  if (endless > 0) {
    yield {
      area: 'answers',
      what: `${endless} idempotency answers are kept for longer than 24 h.`,
      whatToDo: "Check the clock of the database. Then delete them: WHERE expires_at > now() + interval '24 hours'.",
    }
  }
}
