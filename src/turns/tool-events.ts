import type { FastifyBaseLogger } from 'fastify'
import type { RunningGateway } from '#instances/find.ts'
import type { RunEvent, ToolEvent } from '#openclaw/gateway/run-events.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import type { AgentEvent } from './gateway-answer.ts'
import type { Turn } from './turn.ts'

/** The most events of tools in one turn: later ones are dropped. */
export const maxToolEvents = 1000

/** The events of the tools of one turn, from their arrival until they are written. */
export class ToolQueue {
  #left = maxToolEvents
  #events: ToolEvent[] = []
  #changed = Promise.withResolvers<void>()

  /** Resolves with the next event after the last `take`. */
  get changed(): Promise<void> {
    return this.#changed.promise
  }

  add(event: ToolEvent): void {
    if (this.#left === 0) return
    this.#left -= 1
    this.#events.push(event)
    this.#changed.resolve()
  }

  take(): ToolEvent[] {
    this.#changed = Promise.withResolvers()
    return this.#events.splice(0)
  }
}

interface FollowedTools {
  /** Called with the id of the run whose tools are followed from now on. */
  onRun(runId: string): void
  /** Adds the events of the tools to those of the turn. */
  addTo(batches: AsyncIterable<AgentEvent[]>): AsyncGenerator<AgentEvent[]>
  release(): void
}

/**
 * Follows the tools of a turn over the kept connection to its gateway, except calls of these `functions`, which are the
 * client's. Resolves once the connection is open. A turn whose gateway accepts no connection goes on without the events.
 */
export async function followTools(
  { watches, instanceId, log }: { watches: Watches; instanceId: string; log: FastifyBaseLogger },
  { signal }: Turn,
  gateway: RunningGateway,
  functions: ReadonlySet<string>,
): Promise<FollowedTools> {
  signal.throwIfAborted()
  const queue = new ToolQueue()
  let followed: string | null = null
  const onRunEvent = (event: RunEvent) => {
    if (event.runId === followed && event.kind === 'tool' && !functions.has(event.name)) queue.add(event)
  }
  const opened = watches.open(gateway, onRunEvent)
  const ended = Promise.withResolvers<void>()
  signal.addEventListener('abort', () => ended.resolve(), { once: true })
  await Promise.race([opened, ended.promise]).catch((err: unknown) =>
    log.warn({ err, instanceId }, 'the tools of a turn could not be followed'),
  )
  return {
    onRun(runId) {
      followed = runId
    },
    addTo: (batches) => withTools(batches, queue),
    release: () => void opened.then((watch) => watch.release()).catch(() => {}),
  }
}

/** Adds the events of a queue to those of a turn, each as it comes, until the end of the turn. */
export async function* withTools(batches: AsyncIterable<AgentEvent[]>, queue: ToolQueue): AsyncGenerator<AgentEvent[]> {
  const iterator = batches[Symbol.asyncIterator]()
  try {
    for (;;) {
      const next = iterator.next()
      next.catch(() => {}) // observed below, unless the reader leaves first
      for (let isWaiting = true; isWaiting; ) {
        isWaiting = await Promise.race([next.then(() => false), queue.changed.then(() => true)])
        const tools = queue.take()
        if (tools.length > 0) yield tools
      }
      const step = await next
      if (step.done) return
      yield step.value
    }
  } finally {
    await iterator.return?.()
  }
}
