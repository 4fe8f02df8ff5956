import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import type { Event as Row } from '#database/schema.ts'
import type { EventType } from '#history/event-types.ts'
import { type Caller, hasPermission } from '#http/caller.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type EventQuery, listEvents } from './list.ts'
import { stepType, toEvent } from './schemas.ts'
import type { EventTail, StepChange } from './tail.ts'

/** Less than the idle timeouts of common proxies. */
const signEveryMs = 15_000
const pageSize = 100
/** Between two attempts to read from a database that is down. */
const pauseMs = 1000

/** The request of a reader, with the caller, whose grants limit it. */
export interface Followed {
  caller: Caller
  /** Only this instance. */
  instanceId?: string | undefined
  /** Only events of these types; undefined for all. */
  types?: readonly EventType[] | undefined
  /** Whether it gets the steps too. */
  hasSteps: boolean
  /** Begins after the event with this id; undefined: with the next one. */
  after: number | undefined
}

/** An event as it is sent: with the id of the history, or without one. */
export interface SentEvent {
  id: number | null
  data: string
}

const stepEvent = ({ instanceId, step, seenAt }: StepChange): SentEvent => ({
  id: null,
  data: JSON.stringify({ id: null, type: stepType, instance_id: instanceId, step, created_at: toMicroseconds(seenAt) }),
})

/** Changes of a key, or of all of them, after which its open streams end. Their clients connect again, if they may. */
const endings = new Set(['key.revoke', 'key.update', 'organization.suspend', 'organization.delete'])

/** Whether an event ends the streams of a key. */
const ends = ({ type, subject }: Row, { keyId }: Caller) =>
  endings.has(type) && (!type.startsWith('key.') || subject === keyId)

/**
 * Yields batches of events as they are settled, in the order of the history and each once, and the steps of starts as
 * they begin. A batch without events keeps the connection alive; the first one says that the reader has begun. Returns
 * when the key of the caller is changed or revoked, or `signal` is aborted.
 */
export async function* followHistory(
  { db, tail }: { db: Db; tail: EventTail },
  { caller, instanceId, types, hasSteps, after }: Followed,
  signal: AbortSignal,
): AsyncGenerator<SentEvent[], void> {
  const { organizationId, instanceIds } = caller
  const mayConfigure = hasPermission(caller, 'configure')
  const isVisible = (id: string | null) =>
    (instanceId === undefined || id === instanceId) &&
    (instanceIds === null || (id !== null && instanceIds.includes(id)))
  const show = (rows: Row[]): SentEvent[] =>
    rows
      .filter(({ instanceId: id, type }) => isVisible(id) && (types?.includes(type as EventType) ?? true))
      .map((row) => ({ id: row.id, data: JSON.stringify(toEvent(row, mayConfigure)) }))

  const reader = await tail.follow(organizationId, signal)
  let position = after ?? reader.last
  yield []
  let mustCatchUp = position < reader.from
  while (!signal.aborted) {
    if (mustCatchUp) {
      const query: EventQuery = { organizationId, instanceId, types, order: 'asc', after: position, limit: pageSize }
      const page = await listEvents(db, query).catch((error: unknown) => {
        if (isDatabaseDown(error)) return null
        throw error
      })
      if (page) {
        position = page.rows.at(-1)?.id ?? position
        mustCatchUp = page.next !== undefined
        const shown = show(page.rows)
        if (shown.length > 0) yield shown
      } else {
        await sleep(pauseMs)
      }
      continue
    }
    await reader.wait(signEveryMs)
    const { events, steps, hasMissed } = reader.take()
    if (events.some((event) => ends(event, caller))) return
    if (hasMissed) mustCatchUp = true
    if (mustCatchUp) continue
    const news = events.filter(({ id }) => id > position)
    position = news.at(-1)?.id ?? position
    const asked = hasSteps ? steps.filter((change) => isVisible(change.instanceId)) : []
    const shown = [...show(news), ...asked.map(stepEvent)]
    if (shown.length > 0 || events.length + steps.length === 0) yield shown
  }
}

/** The message of an event. One without an id leaves the reader's `Last-Event-ID` as it is. */
export const serverSentHistory = ({ id, data }: SentEvent) => `${id === null ? '' : `id: ${id}\n`}data: ${data}\n\n`
