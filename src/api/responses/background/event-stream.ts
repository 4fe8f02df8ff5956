import { setTimeout as sleep } from 'node:timers/promises'
import { terminalEvents } from '#api/responses/format/event-schemas.ts'
import type { ResponseEvent } from '#api/responses/format/response-writer.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { isObject } from '#openclaw/json.ts'
import type { BackgroundRows } from './background-rows.ts'

const readEveryMs = 100
/** Less than the idle timeouts of common proxies. */
const signEveryMs = 15_000

interface StoredEvent {
  type: ResponseEvent['type']
  number: number
  json: string
}

function read(json: string): StoredEvent {
  const event: unknown = JSON.parse(json)
  if (!isObject(event)) throw new Error('a stored event is not an object')
  return { type: event.type as ResponseEvent['type'], number: Number(event.sequence_number), json }
}

/**
 * Yields the events of a background response after number `after`: those so far at once, further ones until the
 * terminal one. An empty batch keeps the connection alive. Any process can serve it. Ends early when the signal is
 * aborted. `findEnd` returns the terminal event for a response whose events are deleted; null while it runs.
 */
export async function* followEvents(
  rows: Pick<BackgroundRows, 'read'>,
  { id, after }: { id: string; after: number },
  findEnd: () => Promise<ResponseEvent | null>,
  signal: AbortSignal,
): AsyncGenerator<ResponseEvent[], void> {
  let last = -1
  let sentAt = Number.NEGATIVE_INFINITY
  while (!signal.aborted) {
    const batches = await rows.read({ id, after: last }).catch((error: unknown) => {
      if (isDatabaseDown(error)) return []
      throw error
    })
    const events = batches.flatMap((batch) => batch.events.map(read))
    last = batches.at(-1)?.sequence ?? last
    const news = events.filter(({ number }) => number > after)
    const isSignDue = performance.now() - sentAt > signEveryMs
    const end = events.length === 0 && (last === -1 || isSignDue) ? await findEnd() : null
    if (end) return yield [end]
    if (news.length > 0 || isSignDue) {
      yield news.map(({ type, json }) => ({ type, json: () => json }))
      sentAt = performance.now()
    }
    if (events.some(({ type }) => terminalEvents.has(type))) return
    await sleep(readEveryMs, undefined, { signal }).catch(() => {})
  }
}
