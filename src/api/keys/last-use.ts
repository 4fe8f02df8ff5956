import { and, inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { apiKeys } from '#database/schema.ts'
import type { Logger } from '#platform/log.ts'

const writeAfterMs = 1000

/** Whether a key's last use was written down so long ago that it is to be written anew. */
export const isUseDue = sql<boolean>`(${apiKeys.lastUsedAt} IS NULL OR ${apiKeys.lastUsedAt} < now() - interval '1 minute')`

/**
 * Writes down when keys were last used, in the background and many at once. What could not be written is dropped: the
 * next use is due again.
 */
export function createKeyUses(db: Db, log: Pick<Logger, 'warn'>) {
  const used = new Set<string>()
  let isFailing = false
  let timer: NodeJS.Timeout | undefined
  let written: Promise<void> = Promise.resolve()

  async function write(): Promise<void> {
    const ids = [...used]
    used.clear()
    if (ids.length === 0) return
    // A row that is locked is skipped: another process writes the same.
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
          if (!isFailing) log.warn({ err: error }, "keys' last uses cannot be written down")
          isFailing = true
        },
      )
  }

  function writeNext(): Promise<void> {
    clearTimeout(timer)
    timer = undefined
    written = written.then(write)
    return written
  }

  return {
    /** Never waits and never fails. */
    add(keyId: string): void {
      used.add(keyId)
      timer ??= setTimeout(writeNext, writeAfterMs).unref()
    },
    /** Writes what was not yet. */
    close: writeNext,
  }
}
