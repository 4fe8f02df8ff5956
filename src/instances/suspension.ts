import { and, eq, inArray, isNotNull, isNull, type SQL } from 'drizzle-orm'
import type { PgUpdateSetSource } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { instances, organizations } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from './intent.ts'
import type { InstanceQueue } from './queue.ts'

/** Maximum rows per statement. */
const batchSize = 250

/** Changes the matching instances in batches; those that are being changed are left to the next run. */
export async function changeInBatches(
  { db, queue }: { db: Db; queue: InstanceQueue },
  condition: SQL | undefined,
  set: PgUpdateSetSource<typeof instances>,
  signal: AbortSignal,
): Promise<void> {
  for (;;) {
    const batch = db
      .select({ id: instances.id })
      .from(instances)
      .innerJoin(organizations, eq(organizations.id, instances.organizationId))
      .where(condition)
      .limit(batchSize)
      .for('update', { of: instances, skipLocked: true })
    const changed = await db
      .update(instances)
      .set(set)
      .where(inArray(instances.id, batch))
      .returning({ id: instances.id })
    if (changed.length > 0) queue.enqueue()
    if (changed.length < batchSize) return
    signal.throwIfAborted()
  }
}

/**
 * Stops the instances of suspended organizations. Restarts those that it stopped once their organization is resumed,
 * unless their owner has started or stopped them since. Also stops an instance that a request started while its
 * organization was being suspended. After a crash the next run does the rest.
 */
export async function applySuspensions(deps: { db: Db; queue: InstanceQueue }, signal: AbortSignal): Promise<void> {
  const reason = 'The operator suspended the organization.'
  await changeInBatches(
    deps,
    and(isNotNull(organizations.suspendedAt), eq(instances.desiredState, 'running')),
    { ...raiseGeneration('suspend'), changedBy: changedBy({ type: 'instance.stop', reason }) },
    signal,
  )
  await changeInBatches(
    deps,
    and(isNull(organizations.suspendedAt), instances.isSuspended, eq(instances.desiredState, 'stopped')),
    {
      ...raiseGeneration('start'),
      changedBy: changedBy({ type: 'instance.start', reason: 'The operator resumed the organization.' }),
    },
    signal,
  )
}
