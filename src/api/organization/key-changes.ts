import { and, eq, isNotNull, or } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances, type ModelProvider } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isDue } from '#instances/status.ts'

/**
 * Makes the instances of a provider due that run or start. The relay has the new key already; workers make OpenClaw
 * forget a refusal of the key before, after which it does not ask for minutes. Returns whether there are any.
 */
export async function makeKeyUsersDue(tx: Db, organizationId: string, provider: ModelProvider): Promise<boolean> {
  const { rowCount } = await tx
    .update(instances)
    .set({
      ...raiseGeneration('changeProviderKey'),
      changedBy: changedBy({ type: 'instance.due', reason: 'The key of its model provider was changed.' }),
    })
    .where(
      and(
        eq(instances.organizationId, organizationId),
        eq(instances.modelProvider, provider),
        eq(instances.desiredState, 'running'),
        or(isNotNull(instances.readyAt), isDue),
      ),
    )
  return (rowCount ?? 0) > 0
}
