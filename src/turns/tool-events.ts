import type { RunningGateway } from '#instances/find.ts'
import type { RunEvent, ToolEvent } from '#openclaw/gateway/run-events.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import { type ApprovalEvent, type ApprovalParts, TurnApprovals } from './approvals.ts'
import type { AgentEvent } from './gateway-answer.ts'
import type { Turn } from './turn.ts'

/** The most events of tools and approvals in one turn: later ones are dropped. */
export const maxToolEvents = 1000

/** The events of the tools and approvals of one turn, from their arrival until they are written. */
export class ToolQueue {
  #left = maxToolEvents
  #events: (ToolEvent | ApprovalEvent)[] = []
  #changed = Promise.withResolvers<void>()

  /** Resolves with the next event after the last `take`. */
  get changed(): Promise<void> {
    return this.#changed.promise
  }

  add(event: ToolEvent | ApprovalEvent): void {
    if (this.#left === 0) return
    this.#left -= 1
    this.#events.push(event)
    this.#changed.resolve()
  }

  take(): (ToolEvent | ApprovalEvent)[] {
    this.#changed = Promise.withResolvers()
    return this.#events.splice(0)
  }
}

interface FollowedTools {
  /** Called with the id of the run whose tools are followed from now on. */
  onRun(runId: string): void
  /** Adds the events of the tools to those of the turn. */
  addTo(batches: AsyncIterable<AgentEvent[]>): AsyncGenerator<AgentEvent[]>
  /** At the end of the turn. */
  release(): void
}

interface FollowOptions extends Omit<ApprovalParts, 'onChange'> {
  watches: Watches
  sessionKey: string
  /** Whether the caller wants the events of tools, beside the approvals of an agent that asks. */
  wantsTools: boolean
  /** The client's tools. */
  functions: ReadonlySet<string>
}

/**
 * Follows the tools and approvals of a turn over the kept connection to its gateway, except calls of `functions`.
 * Resolves once the connection is open. A turn whose gateway accepts no connection goes on without the events, and its
 * gateway denies commands that need an approval.
 */
export async function followTools(
  { watches, sessionKey, wantsTools, functions, ...parts }: FollowOptions,
  { signal }: Turn,
  gateway: RunningGateway,
): Promise<FollowedTools> {
  const { instanceId, log } = parts
  signal.throwIfAborted()
  const queue = new ToolQueue()
  const approvals = new TurnApprovals({ ...parts, onChange: (event) => queue.add(event) })
  let followed: string | null = null
  const onRunEvent = (event: RunEvent) => {
    // An answer that is not streamed has no id of its run before its end. A session runs one turn at a time.
    if (event.kind === 'approval' && event.sessionKey === `agent:main:${sessionKey}`)
      opened.then((watch) => approvals.read(watch.gateway, event.approvalId)).catch(() => {})
    if (event.runId === followed && event.kind === 'tool' && wantsTools && !functions.has(event.name)) queue.add(event)
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
    release: () =>
      void opened
        .then(async (watch) => {
          watch.release()
          await approvals.end()
        })
        .catch((err: unknown) => log.warn({ err, instanceId }, 'the approvals of a turn could not be ended')),
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
