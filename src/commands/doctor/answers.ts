import { sql } from 'drizzle-orm'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import { type Check, type DoctorDeps, lowestId, pageSize } from './finding.ts'
import { type Page, pagesOf } from './part.ts'

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

/** The idempotency keys in pages, all or a part of them, with the number of those that nobody can use. */
const countUnanswered = ({ db, part }: DoctorDeps): AsyncGenerator<Page & { unanswered: number }> =>
  pagesOf(part, 'impossibleAnswers', async function* (from) {
    for (let [organization, key] = from ?? [lowestId, '']; ; ) {
      const { rows } = await db.execute<{ organization: string; key: string; unanswered: boolean }>(sql`
        SELECT organization_id AS organization, key, sealed_answer IS NULL
               AND expires_at > now() + make_interval(mins => ${maxClaimMinutes}) AS unanswered
        FROM idempotency_keys WHERE (organization_id, key) > (${organization}, ${key})
        ORDER BY organization_id, key LIMIT ${pageSize}`)
      const last = rows.at(-1)
      if (!last) return
      const unanswered = rows.filter((row) => row.unanswered).length
      yield { rows: rows.length, last: [last.organization, last.key], unanswered }
      if (rows.length < pageSize) return
      ;[organization, key] = [last.organization, last.key]
    }
  })

/** I4: every idempotency key has one answer, which expires in time. */
export const impossibleAnswers: Check = async function* (deps) {
  let unanswered = 0
  for await (const page of countUnanswered(deps)) unanswered += page.unanswered
  const { rows } = await deps.db.execute<{ endless: number }>(sql`
    SELECT count(*)::int AS endless FROM idempotency_keys
    WHERE expires_at > now() + make_interval(hours => ${maxKeptHours})`)
  const endless = rows[0]?.endless ?? 0
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
