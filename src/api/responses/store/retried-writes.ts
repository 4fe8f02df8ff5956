/** The last again and again. */
const retryPausesMs = [100, 500, 2000, 5000] as const
const maxPauseMs = 5000
/** How long the end of a turn waits for a database that is away, and how many, and how much of their rows. */
const retryForMs = 5 * 60_000
const maxWaiting = 10_000
const maxWaitingCharacters = 64 * 1024 * 1024
/** What they get once the store closes. */
const closeWithinMs = 5000

/** A row to be written, its contents sealed, by column. */
export type Columns = readonly (string | null)[]

export interface RetriedWrites {
  /**
   * Writes a row, again and again while that fails. Throws what the last try threw: after 5 minutes, at the next failure once
   * more than 10,000 rows or 64 Mi characters wait, or once it closes.
   */
  untilWritten(row: Columns, write: (row: Columns) => Promise<void>): Promise<void>
  /** Tries what waits once more at once, and answers how long, in ms, tries may still be made. */
  close(): number
}

/** Rows that wait for a database which is away. They are held in memory: a process that ends loses them. */
export function createRetriedWrites(): RetriedWrites {
  const waiting = { rows: 0, characters: 0 }
  let closesAt = Number.POSITIVE_INFINITY
  const pausing = new Set<() => void>()
  const pause = (ms: number) =>
    new Promise<void>((resolve) => {
      const goOn = () => {
        clearTimeout(timer)
        pausing.delete(goOn)
        resolve()
      }
      const timer = setTimeout(goOn, ms)
      pausing.add(goOn)
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
            const pauseMs = retryPausesMs[failures] ?? maxPauseMs
            const isTooMuch = waiting.rows > maxWaiting || waiting.characters > maxWaitingCharacters
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
      for (const goOn of pausing) goOn()
      return closeWithinMs
    },
  }
}
