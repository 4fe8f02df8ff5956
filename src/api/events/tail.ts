import { setTimeout as sleep } from 'node:timers/promises'
import { and, asc, gt, inArray, lt, lte, sql } from 'drizzle-orm'
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '#database/client.ts'
import { type Event, events, instances } from '#database/schema.ts'
import { settledId } from '#history/settled.ts'
import { logFirstAndRecovery } from '#platform/log.ts'

/** Readers get an event at most this long after it is settled, plus the time of a read. */
const readEveryMs = 250
const atMost = 1000
/** Events that wait for one reader. A reader that is further behind reads the history again. */
const maxWaiting = 1000

/** A step that a worker has begun on an instance. The history has no such events. */
export interface StepChange {
  instanceId: string
  step: string
  /** By the clock of the database. */
  seenAt: Date
}

/** One reader of the tail. */
interface TailReader {
  /** The last event at the beginning of the reader. */
  last: number
  /** Every event after this one is handed to the reader, or missed and said to be. */
  from: number
  /** Takes what has come, in order. `hasMissed`: some of the events that came were dropped. */
  take(): { events: Event[]; steps: StepChange[]; hasMissed: boolean }
  /** Resolves once something has come, after `ms`, or when the signal of the reader is aborted. */
  wait(ms: number): Promise<void>
}

interface Waiting {
  events: Event[]
  steps: StepChange[]
  hasMissed: boolean
  wake(): void
}

/** The end of the history, which is read once for all readers in this process, and only while there are some. */
export interface EventTail {
  /** Begins a reader of an organization, which ends with the signal. Throws when the database is unavailable. */
  follow(organizationId: string, signal: AbortSignal): Promise<TailReader>
}

export function createEventTail(db: Db, log: FastifyBaseLogger): EventTail {
  const readers = new Map<string, Set<Waiting>>()
  /** Every event up to this id was handed to the readers. */
  let position = 0
  let running: Promise<void> | undefined
  let steps = new Map<string, string | null>()
  const outage = logFirstAndRecovery(log, 'streams of events wait for the database', 'streams of events go on')

  const readSteps = () =>
    db
      .select({
        instanceId: instances.id,
        organizationId: instances.organizationId,
        step: instances.step,
        seenAt: sql`now()`.mapWith(instances.updatedAt),
      })
      .from(instances)
      .where(
        and(
          inArray(instances.organizationId, [...readers.keys()]),
          lt(instances.observedGeneration, instances.generation),
        ),
      )
      .orderBy(asc(instances.id))
      .limit(atMost)

  function handOver(organizationId: string, add: (waiting: Waiting) => void) {
    for (const waiting of readers.get(organizationId) ?? []) {
      add(waiting)
      waiting.wake()
    }
  }

  async function read(): Promise<void> {
    const settled = await settledId(db)
    while (position < settled) {
      const isNew = and(gt(events.id, position), lte(events.id, settled))
      const found = await db.select().from(events).where(isNew).orderBy(asc(events.id)).limit(atMost)
      for (const event of found) {
        handOver(event.organizationId, (waiting) => {
          if (waiting.events.length < maxWaiting) waiting.events.push(event)
          else waiting.hasMissed = true
        })
      }
      position = found.length < atMost ? settled : (found.at(-1)?.id ?? settled)
    }
    const due = await readSteps()
    for (const { organizationId, instanceId, step, seenAt } of due) {
      if (step === null || steps.get(instanceId) === step) continue
      handOver(organizationId, (waiting) => {
        if (waiting.steps.length < maxWaiting) waiting.steps.push({ instanceId, step, seenAt })
      })
    }
    steps = new Map(due.map(({ instanceId, step }) => [instanceId, step]))
  }

  async function run(): Promise<void> {
    while (readers.size > 0) {
      await read().then(outage.recovered, outage.failed)
      await sleep(readEveryMs)
    }
    running = undefined
  }

  return {
    async follow(organizationId, signal) {
      const last = await settledId(db)
      let wake = () => {}
      const waiting: Waiting = { events: [], steps: [], hasMissed: false, wake: () => wake() }
      const own = readers.get(organizationId) ?? new Set()
      readers.set(organizationId, own.add(waiting))
      function leave() {
        own.delete(waiting)
        if (own.size === 0) readers.delete(organizationId)
        wake()
      }
      if (signal.aborted) leave()
      else signal.addEventListener('abort', leave, { once: true })
      if (!running) {
        position = last
        running = run()
      }
      return {
        last,
        from: position,
        take() {
          const { events, steps, hasMissed } = waiting
          Object.assign(waiting, { events: [], steps: [], hasMissed: false })
          return { events, steps, hasMissed }
        },
        async wait(ms) {
          if (waiting.events.length + waiting.steps.length > 0 || waiting.hasMissed || signal.aborted) return
          const { promise, resolve } = Promise.withResolvers<void>()
          wake = resolve
          const timer = setTimeout(resolve, ms)
          await promise
          clearTimeout(timer)
        },
      }
    },
  }
}
