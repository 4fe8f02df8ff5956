import { and, eq, isNull, lt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type ModelProvider, providerKeys } from '#database/schema.ts'
import { runAs } from '#history/actor.ts'
import { recordEvent } from '#history/record.ts'

/** Precision of the stored time of a refusal, so that the turns of a busy agent do not write it each time. */
const exactToSeconds = 60

/**
 * Records that a provider has refused the stored key of an organization. The first refusal of a key is an event. Does
 * nothing when there is no key.
 */
export async function recordKeyRefusal(db: Db, organizationId: string, provider: ModelProvider): Promise<void> {
  const isKey = and(eq(providerKeys.organizationId, organizationId), eq(providerKeys.provider, provider))
  const refused = { refusedAt: sql`now()` }
  await db.transaction(async (tx) => {
    const first = await tx
      .update(providerKeys)
      .set(refused)
      .where(and(isKey, isNull(providerKeys.refusedAt)))
    if (first.rowCount === 0) {
      const isDue = lt(providerKeys.refusedAt, sql`now() - make_interval(secs => ${exactToSeconds})`)
      await tx.update(providerKeys).set(refused).where(and(isKey, isDue))
      return
    }
    // The actor is the worker: the provider refused the key, whoever made the call.
    await runAs({ actor: { type: 'worker' } }, () =>
      recordEvent(tx, { organizationId, type: 'provider_key.refused', subject: provider }),
    )
  })
}
