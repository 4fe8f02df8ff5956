import { and, desc, eq, inArray, isNotNull, or } from 'drizzle-orm'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { after } from '#database/page.ts'
import { instances, type ModelProvider, providerKeyChanges } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isDue } from '#instances/status.ts'

/** Instances that one statement makes due: each has its trigger and its event. */
const maxDue = 1000

interface KeyChange {
  organizationId: string
  provider: ModelProvider
}

const isOf = ({ organizationId, provider }: KeyChange) =>
  and(eq(providerKeyChanges.organizationId, organizationId), eq(providerKeyChanges.provider, provider))

/**
 * Makes the instances of a provider due that run or start, up to `maxDue`: workers have them forget that the provider
 * refused the key before, after which OpenClaw does not ask for minutes. The relay has the new key already. Writes down
 * that the others are to follow, for `applyKeyChanges`. Called in the transaction of the change, which holds the lock
 * of the organization. Returns whether there are any.
 */
export async function beginKeyChange(tx: Db, change: KeyChange): Promise<boolean> {
  // What is left of the change before. First, because `applyKeyChanges` locks this row before instances as well.
  await tx.delete(providerKeyChanges).where(isOf(change))
  const { rows, last } = await makeSomeDue(tx, change)
  if (last) await tx.insert(providerKeyChanges).values({ ...change, afterInstanceId: last })
  return rows > 0
}

/**
 * Makes the other instances due of all changes that have begun, in batches; workers find their rows without the queue.
 * Skips a change that another worker works on. A throw of the signal's reason, or a crash, leaves what the next call
 * does.
 */
export async function applyKeyChanges(db: Db, signal?: AbortSignal): Promise<void> {
  while (await retryOnDeadlock(() => db.transaction(applySome))) signal?.throwIfAborted()
}

/** Returns whether there was a change. */
async function applySome(tx: Db): Promise<boolean> {
  const [change] = await tx.select().from(providerKeyChanges).limit(1).for('update', { skipLocked: true })
  if (!change) return false
  const { last } = await makeSomeDue(tx, change, change.afterInstanceId)
  if (last) await tx.update(providerKeyChanges).set({ afterInstanceId: last }).where(isOf(change))
  else await tx.delete(providerKeyChanges).where(isOf(change))
  return true
}

/** `last` is the last one of a whole batch. */
async function makeSomeDue(tx: Db, { organizationId, provider }: KeyChange, afterId?: string) {
  const needsKey = and(
    eq(instances.organizationId, organizationId),
    eq(instances.modelProvider, provider),
    eq(instances.desiredState, 'running'),
    or(isNotNull(instances.readyAt), isDue),
  )
  const found = await tx
    .select({ id: instances.id })
    .from(instances)
    .where(and(needsKey, afterId ? after(instances, organizationId, afterId) : undefined))
    .orderBy(desc(instances.createdAt), desc(instances.id))
    .limit(maxDue)
  const ids = found.map(({ id }) => id)
  const { rowCount } = await tx
    .update(instances)
    .set({
      ...raiseGeneration('changeProviderKey'),
      changedBy: changedBy({ type: 'instance.due', reason: 'The key of its model provider was changed.' }),
    })
    .where(and(inArray(instances.id, ids), needsKey))
  return { rows: rowCount ?? 0, last: ids.length === maxDue ? ids.at(-1) : undefined }
}
