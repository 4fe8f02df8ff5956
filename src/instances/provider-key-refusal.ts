import { and, eq, isNull, lt, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type ModelProvider, providerKeys } from '#database/schema.ts'

/** The time of a refusal is this exact, so that the turns of a busy agent do not write it over and over. */
const exactToSeconds = 60

/** Notes that a provider has refused the stored key of an organization. Does nothing when there is none. */
export async function noteKeyRefusal(db: Db, organizationId: string, provider: ModelProvider): Promise<void> {
  const isDue = lt(providerKeys.refusedAt, sql`now() - make_interval(secs => ${exactToSeconds})`)
  await db
    .update(providerKeys)
    .set({ refusedAt: sql`now()` })
    .where(
      and(
        eq(providerKeys.organizationId, organizationId),
        eq(providerKeys.provider, provider),
        or(isNull(providerKeys.refusedAt), isDue),
      ),
    )
}
