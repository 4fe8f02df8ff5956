import { eq, sql } from 'drizzle-orm'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { instances, organizations } from '#database/schema.ts'
import { recordEvent } from '#history/record.ts'
import { isNotTerminated } from '#instances/status.ts'
import { type Check, type DoctorDeps, lowestId, pageSize } from './finding.ts'
import { type Page, pagesOf } from './part.ts'

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

type Counted = { id: string; counter: number; live: number; found: number }

/**
 * The organizations in pages, all or a part of them, with their counters and the numbers of their instances. A page has
 * as many organizations as have a page of instances together, by their counters.
 */
const countInstances = ({ db, part }: DoctorDeps): AsyncGenerator<Page & { counted: Counted[] }> =>
  pagesOf(part, 'miscounted', async function* (from) {
    for (let after = from?.[0] ?? lowestId; ; ) {
      const { rows: counted } = await db.execute<Counted>(sql`
        SELECT o.id, o.instance_count AS counter, live.n AS live, o.found
        FROM (
          SELECT *, coalesce(sum(greatest(instance_count, 0)) OVER (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before,
                 (count(*) OVER ())::int AS found
          FROM (SELECT id, instance_count FROM organizations WHERE id > ${after} ORDER BY id LIMIT ${pageSize}) page
        ) o
        CROSS JOIN LATERAL (
          SELECT count(*)::int AS n FROM instances i WHERE i.organization_id = o.id AND i.desired_state <> 'terminated'
        ) live
        WHERE o.before < ${pageSize}
        ORDER BY o.id`)
      const last = counted.at(-1)
      if (!last) return
      yield { rows: counted.reduce((sum, { live }) => sum + live, counted.length), last: [last.id], counted }
      if (counted.length === last.found && last.found < pageSize) return
      after = last.id
    }
  })

/** I3: the counter that limits creates equals the number of instances. */
export const miscounted: Check = async function* (deps) {
  const { db } = deps
  for await (const { counted } of countInstances(deps)) {
    for (const { id, counter, live } of counted) {
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
  }
}
