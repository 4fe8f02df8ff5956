import { and, eq, gt, lt, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { processes } from './schema.ts'

/** How often a process beats, in ms. */
export const beatEveryMs = 2000
/** A process without a beat for this long is dead, by the clock of the database. */
export const aliveSeconds = 15
/** A process without a beat for this long has a gap: three beats are missing. */
const gapSeconds = 6
/** How long the row of a killed process stays. */
const keptHours = 1

export type ProcessFacts = Pick<
  typeof processes.$inferSelect,
  'id' | 'role' | 'regions' | 'version' | 'commit' | 'host' | 'pid'
>

/** The current time, also within a transaction. */
const ago = (seconds: number) => sql`statement_timestamp() - make_interval(secs => ${seconds})`

const hasBeaten = and(gt(processes.seenAt, ago(aliveSeconds)), sql`${processes.role} <> ''`)

/**
 * Beats for a process: it is alive for 15 s more. Returns the living processes, including this one, in the order of
 * their ids. Deletes the rows of processes that ended long ago.
 */
export async function beat(db: Db, facts: ProcessFacts): Promise<ProcessFacts[]> {
  const since = sql`CASE WHEN ${processes.seenAt} > ${ago(gapSeconds)} THEN ${processes.since} ELSE now() END`
  await db
    .insert(processes)
    .values(facts)
    .onConflictDoUpdate({ target: processes.id, set: { ...facts, since, seenAt: sql`now()` } })
  await db.delete(processes).where(lt(processes.seenAt, ago(keptHours * 3600)))
  return aliveProcesses(db)
}

/** Removes the row of a process, which makes it dead at once. */
export const removeProcess = (db: Db, id: string) => db.delete(processes).where(eq(processes.id, id))

/** The living processes, in the order of their ids. */
export const aliveProcesses = (db: Db): Promise<ProcessFacts[]> =>
  db.select().from(processes).where(hasBeaten).orderBy(processes.id)

/** Whether a process works on instances. A draining one does not, although it lives. */
export const isWorker = ({ regions }: Pick<ProcessFacts, 'regions'>): boolean => regions.length > 0

const beatenFor = `> statement_timestamp() - interval '${aliveSeconds} seconds'`

/**
 * A condition of SQL: whether the process with this id is alive; `id` is an expression, such as `call.process_id`. For
 * the rows that a process holds: those of a dead one are lost. While no process has beaten for 15 s without a gap, all
 * count as alive: after an outage of the database the living ones have yet to beat.
 */
export const isProcessAlive = (id: string): string => `(
  EXISTS (SELECT FROM processes holder WHERE holder.id = ${id} AND holder.seen_at ${beatenFor})
  OR NOT EXISTS (SELECT FROM processes beating WHERE beating.seen_at ${beatenFor} AND NOT beating.since ${beatenFor}))`
