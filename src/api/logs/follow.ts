import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '#errors/app-error.ts'
import type { LogPage } from '#sandbox/driver.ts'
import type { Line } from './schemas.ts'

const keepAliveMs = 15_000
const firstPauseMs = 200
const maxPauseMs = 1000
/** Lines per read of the log. Few, because masking them takes processor time from other requests. */
const pageLines = 200
/** A platform that fails for longer than this ends the stream. */
const outageMs = 60_000

export interface Followed {
  read(options: { lines: number; after?: string }): Promise<LogPage>
  /** The lines with their secrets hidden. */
  mask(lines: LogPage['lines']): Promise<Line[]>
  /** The reason why no more lines follow, for people; null while some may follow. */
  whyEnded(): Promise<string | null>
}

const event = (name: string, data: unknown) => `event: ${name}\ndata: ${JSON.stringify(data)}\n\n`

/**
 * Yields the last lines of a log and then new ones, as server-sent events, until no more follow or `signal` is aborted.
 * Reads on only when its reader has taken the yielded lines: the rest stays in the log. A restarted gateway continues
 * the same log.
 */
export async function* followLog(log: Followed, tail: number, signal: AbortSignal): AsyncGenerator<string, void> {
  let page = await log.read({ lines: tail })
  let pauseMs = firstPauseMs
  let sentAt = performance.now()
  let seenAt = sentAt
  let reason: string | null = null
  yield ': the log follows\n\n' // sends the head of the answer before the first line
  while (!signal.aborted) {
    const lines = page.lines.length > 0 ? await log.mask(page.lines) : []
    const events = [page.hasGap ? event('gap', {}) : '', ...lines.map((line) => event('line', line))].join('')
    const isIdle = events === ''
    if (!isIdle || performance.now() - sentAt >= keepAliveMs) {
      yield isIdle ? ': still here\n\n' : events
      sentAt = performance.now()
    }
    pauseMs = isIdle ? Math.min(pauseMs * 2, maxPauseMs) : firstPauseMs
    if (isIdle && reason !== null) return yield event('end', { reason })
    if (isIdle) reason = await log.whyEnded() // lines from before the end may be unread: read once more
    await sleep(pauseMs, undefined, { signal }).catch(() => {})
    if (signal.aborted) return
    try {
      page = await log.read({ lines: pageLines, after: page.position })
      seenAt = performance.now()
    } catch (error) {
      if (!(error instanceof AppError)) throw error
      page = { ...page, lines: [], hasGap: false }
      if (performance.now() - seenAt > outageMs) return yield event('end', { reason: error.message })
    }
  }
}
