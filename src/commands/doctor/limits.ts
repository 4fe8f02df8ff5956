import { eq, sql } from 'drizzle-orm'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { instances, organizations } from '#database/schema.ts'
import { recordEvent } from '#history/record.ts'
import { isNotTerminated } from '#instances/status.ts'
import { type Check, lowestId, pageSize } from './finding.ts'

/**
 * Counts the instances again, while no request can create or terminate one: all of them lock the organization first.
 * Null when the counter has become right.
 */
const correct = (db: Db, id: string): Promise<{ from: number; to: number } | null> =>
  retryOnDeadlock(() =>
    db.transaction(async (tx) => {
      const [locked] = await tx
        .select({ from: organizations.instanceCount })
        .from(organizations)
        .where(eq(organizations.id, id))
        .for('update')
      const [counted] = await tx
        .select({ to: sql<number>`count(*)::int` })
        .from(instances)
        .where(sql`${eq(instances.organizationId, id)} AND ${isNotTerminated}`)
      if (!locked || !counted || locked.from === counted.to) return null
      await tx.update(organizations).set({ instanceCount: counted.to }).where(eq(organizations.id, id))
      const reason = `from ${locked.from} to ${counted.to}`
      await recordEvent(tx, { organizationId: id, type: 'organization.count_corrected', reason })
      return { from: locked.from, to: counted.to }
    }),
  )

/** I3: the counter that limits creates equals the number of instances. */
export const miscounted: Check = async function* ({ db }) {
  for (let after = lowestId; ; ) {
    const { rows } = await db.execute<{ id: string; counter: number; live: number }>(sql`
      SELECT o.id, o.instance_count AS counter, live.n AS live
      FROM (SELECT id, instance_count FROM organizations WHERE id > ${after} ORDER BY id LIMIT ${pageSize}) o
      CROSS JOIN LATERAL (
        SELECT count(*)::int AS n FROM instances i WHERE i.organization_id = o.id AND i.desired_state <> 'terminated'
      ) live
      ORDER BY o.id`)
    for (const { id, counter, live } of rows) {
      if (counter === live) continue
      yield {
        area: 'limits',
        what: `The counter of the organization ${id} says ${counter} instances, and there are ${live}.`,
        whatToDo: 'With --fix they are counted again.',
        fix: async () => {
          const corrected = await correct(db, id)
          return corrected && `the counter of ${id} is corrected from ${corrected.from} to ${corrected.to}`
        },
      }
    }
    const last = rows.at(-1)
    if (!last || rows.length < pageSize) return
    after = last.id
  }
}
