import { and, eq, isNotNull, or } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances, type ModelProvider } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isDue } from '#instances/status.ts'

/**
 * Makes the running and starting instances of a provider due. The relay has the new key already. Workers make OpenClaw
 * forget a refusal of the former key: otherwise it pauses requests for minutes. Returns whether there are any.
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
