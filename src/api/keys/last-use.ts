import { and, inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { apiKeys } from '#database/schema.ts'
import type { Logger } from '#platform/log.ts'

const writeAfterMs = 1000

/** Whether the last use of a key was written more than a minute ago, or never. */
export const isUseDue = sql<boolean>`(
  ${apiKeys.lastUsedAt} IS NULL OR ${apiKeys.lastUsedAt} < now() - interval '1 minute'
)`

/**
 * Writes the last uses of keys in the background, many in one statement. A failed write is dropped: the next use of the
 * key is written instead.
 */
export function createKeyUses(db: Db, log: Pick<Logger, 'warn'>) {
  const used = new Set<string>()
  let isFailing = false
  let timer: NodeJS.Timeout | undefined
  let writing: Promise<void> = Promise.resolve()

  async function write(): Promise<void> {
    const ids = [...used]
    used.clear()
    if (ids.length === 0) return
    // Skips locked rows: another process writes the same value.
    const due = db
      .select({ id: apiKeys.id })
      .from(apiKeys)
      .where(and(sql`${apiKeys.id} = ANY(${sql.param(ids)}::uuid[])`, isUseDue))
      .for('update', { skipLocked: true })
    await db
      .update(apiKeys)
      .set({ lastUsedAt: sql`now()` })
      .where(inArray(apiKeys.id, due))
      .then(
        () => {
          isFailing = false
        },
        (error: unknown) => {
          if (!isFailing) log.warn({ err: error }, 'failed to update the last uses of keys')
          isFailing = true
        },
      )
  }

  function writeNext(): Promise<void> {
    clearTimeout(timer)
    timer = undefined
    writing = writing.then(write)
    return writing
  }

  return {
    /** Never waits, and never throws. */
    add(keyId: string): void {
      used.add(keyId)
      timer ??= setTimeout(writeNext, writeAfterMs).unref()
    },
    /** Writes the pending uses. */
    close: writeNext,
  }
}
