import { eq, lt, type SQL, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { deleteInBatches } from './delete-batches.ts'
import { isProcessAlive } from './processes.ts'
import { modelCalls, openModelCalls, sessionEndUsers } from './usage-schema.ts'

/** How long a call is kept: a month can be compared with the same month of the year before. */
export const callsKeptDays = 400
const endUsersKeptDays = 30
/** Maximum rows per statement. */
const batchSize = 1000
/** A new process has no beat yet. */
const settledAfterSeconds = 60

const ago = (days: number): SQL => sql`now() - make_interval(days => ${days})`

/** Deletes the result of a query, in batches. Throws the signal's reason between two batches. */
async function deleteCalls(db: Db, ids: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.delete(modelCalls).where(sql`${modelCalls.id} IN (${ids} LIMIT ${batchSize})`)
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}

/**
 * Deletes the calls that began more than 400 days ago, and the end users of sessions that had no turn for 30 days.
 * Throws the errors of `deleteCalls`.
 */
export async function deleteOldCalls(db: Db, signal?: AbortSignal): Promise<void> {
  await db.delete(sessionEndUsers).where(lt(sessionEndUsers.notedAt, ago(endUsersKeptDays)))
  await deleteCalls(db, sql`SELECT id FROM model_calls WHERE began_at < ${ago(callsKeptDays)}`, signal)
}

/** Deletes all calls of an organization, and the records of its end users. Throws the errors of `deleteCalls`. */
export async function deleteCallsOf(db: Db, organizationId: string, signal?: AbortSignal): Promise<void> {
  await db.delete(openModelCalls).where(eq(openModelCalls.organizationId, organizationId))
  const isOwn = eq(sessionEndUsers.organizationId, organizationId)
  await deleteInBatches(db, sessionEndUsers, isOwn, { rows: 10_000, signal })
  await deleteCalls(db, sql`SELECT id FROM model_calls WHERE organization_id = ${organizationId}`, signal)
}

/**
 * Writes the open calls of dead relays as lost, without usage. A relay that was only delayed corrects them when they
 * end.
 */
export async function settleLostCalls(db: Db): Promise<void> {
  const who = sql.raw('id, organization_id, instance_id, session, cause, provider, model, began_at')
  await db.execute(sql`
    WITH lost AS (
      DELETE FROM open_model_calls AS call
      WHERE began_at < now() - make_interval(secs => ${settledAfterSeconds})
        AND NOT ${sql.raw(isProcessAlive('call.process_id'))}
      RETURNING ${who}
    )
    INSERT INTO model_calls (${who}, outcome)
    SELECT ${who}, 'lost' FROM lost ON CONFLICT (id) DO NOTHING`)
}
