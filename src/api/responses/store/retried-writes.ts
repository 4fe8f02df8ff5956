/** The pauses between the tries of a write. The last one repeats. */
const pausesMs = [100, 500, 2000] as const
const maxPauseMs = 5000
/** How long a row waits for a database that is not available, and how many rows, of how many characters, may wait. */
const retryForMs = 5 * 60_000
const maxWaitingRows = 10_000
const maxWaitingCharacters = 64 * 1024 * 1024
/** How long rows still wait once the store closes. */
const closeWithinMs = 5000

/** A row to be written, its contents sealed, as the values of its columns. */
export type Columns = readonly (string | null)[]

export interface RetriedWrites {
  /**
   * Writes a row, and tries again while that fails. Throws the error of the last try: 5 minutes after the first one, at
   * the next failure while more than 10,000 rows or 64 Mi characters wait, and soon after `close`.
   */
  untilWritten(row: Columns, write: (row: Columns) => Promise<void>): Promise<void>
  /** Tries all waiting rows at once. Returns the time, in ms, for which they may still be tried. */
  close(): number
}

/** Keeps rows in memory while the database is not available. A process that ends loses them. */
export function createRetriedWrites(): RetriedWrites {
  const waiting = { rows: 0, characters: 0 }
  let closesAt = Number.POSITIVE_INFINITY
  const endPauses = new Set<() => void>()
  const pause = (ms: number) =>
    new Promise<void>((resolve) => {
      const end = () => {
        clearTimeout(timer)
        endPauses.delete(end)
        resolve()
      }
      const timer = setTimeout(end, ms)
      endPauses.add(end)
    })

  return {
    async untilWritten(row, write) {
      const characters = row.reduce((sum, text) => sum + (text?.length ?? 0), 0)
      const givesUpAt = performance.now() + retryForMs
      waiting.rows += 1
      waiting.characters += characters
      try {
        for (let failures = 0; ; failures += 1) {
          try {
            return await write(row)
          } catch (error) {
            const pauseMs = pausesMs[failures] ?? maxPauseMs
            const isTooMuch = waiting.rows > maxWaitingRows || waiting.characters > maxWaitingCharacters
            if (isTooMuch || performance.now() + pauseMs > Math.min(givesUpAt, closesAt)) throw error
            await pause(pauseMs)
          }
        }
      } finally {
        waiting.rows -= 1
        waiting.characters -= characters
      }
    },
    close() {
      closesAt = performance.now() + closeWithinMs
      for (const end of endPauses) end()
      return closeWithinMs
    },
  }
}
