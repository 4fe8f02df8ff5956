import { type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'

/** How long a host is kept that no agent has asked for. */
const keptDays = 30
/** Rows that one statement deletes at most. */
const batchSize = 1000

/** In batches; throws the reason of the signal between two. */
async function deleteHosts(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM egress_hosts WHERE (instance_id, host, port) IN (
        SELECT e.instance_id, e.host, e.port FROM egress_hosts e WHERE ${condition} LIMIT ${batchSize})`)
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}

/** Deletes hosts that nobody has asked for in 30 days, and those of deleted instances. */
export async function deleteOldEgressHosts(db: Db, signal?: AbortSignal): Promise<void> {
  await deleteHosts(db, sql`e.last_seen_at < now() - make_interval(days => ${keptDays})`, signal)
  const isGone = sql`NOT EXISTS (
    SELECT FROM instances i WHERE i.id = e.instance_id AND i.desired_state <> 'terminated')`
  await deleteHosts(db, isGone, signal)
}

/** Deletes the hosts that agents of an organization have asked for. */
export const deleteEgressHostsOf = (db: Db, organizationId: string, signal?: AbortSignal): Promise<void> =>
  deleteHosts(db, sql`e.organization_id = ${organizationId}`, signal)
