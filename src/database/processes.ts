import { and, eq, gt, lt, ne, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { processes } from './schema.ts'

/** A process that has not written its row for so long has ended: two of its heartbeats are missing. */
export const aliveSeconds = 20
/** How long the row of a killed process stays, for the operator. */
const keptHours = 1

export type ProcessFacts = Pick<
  typeof processes.$inferSelect,
  'id' | 'role' | 'version' | 'commit' | 'host' | 'pid' | 'secretKeyIds'
>

/** By the clock of now, also within a transaction. */
const ago = (seconds: number) => sql`statement_timestamp() - make_interval(secs => ${seconds})`

/** Says that a process lives, and deletes the rows of processes that ended long ago. */
export async function recordProcess(db: Db, facts: ProcessFacts): Promise<void> {
  await db
    .insert(processes)
    .values(facts)
    .onConflictDoUpdate({ target: processes.id, set: { ...facts, seenAt: sql`now()` } })
  await db.delete(processes).where(lt(processes.seenAt, ago(keptHours * 3600)))
}

/** A worker that has not said for so long which regions it serves has ended. */
const servingSeconds = 7

/** Says which regions a worker serves. Returns the other workers with theirs. */
export async function reportRegions(
  db: Db,
  id: string,
  regions: readonly string[],
): Promise<{ id: string; regions: string[] }[]> {
  const row = { regions: [...regions], seenAt: sql`statement_timestamp()` }
  await db
    .insert(processes)
    .values({ id, ...row })
    .onConflictDoUpdate({ target: processes.id, set: row })
  if (regions.length === 0) return []
  return db
    .select({ id: processes.id, regions: processes.regions })
    .from(processes)
    .where(
      and(
        gt(sql`cardinality(${processes.regions})`, 0),
        gt(processes.seenAt, ago(servingSeconds)),
        ne(processes.id, id),
      ),
    )
}

/** Says that a process has ended. */
export const removeProcess = (db: Db, id: string) => db.delete(processes).where(eq(processes.id, id))

const isAlive = and(gt(processes.seenAt, ago(aliveSeconds)), ne(processes.role, ''))

/** The processes that live and have said what they are. */
export const aliveProcesses = (db: Db) => db.select().from(processes).where(isAlive).orderBy(processes.since)

/** The number of processes that live and have said what they are, and of those among them that work on instances. */
export async function countProcesses(db: Db): Promise<{ all: number; workers: number }> {
  const [counted] = await db
    .select({
      all: sql<number>`count(*)::int`,
      workers: sql<number>`(count(*) FILTER (WHERE ${processes.role} IN ('all', 'worker')))::int`,
    })
    .from(processes)
    .where(isAlive)
  return counted ?? { all: 0, workers: 0 }
}
