import { setTimeout as sleep } from 'node:timers/promises'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError } from '#errors/app-error.ts'
import type { FindGateway, FindSummary, RunningGateway } from '#instances/find.ts'
import { isSleeping, publicStatus } from '#instances/status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal, GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import type { RunEvent, ToolEvent } from '#openclaw/gateway/run-events.ts'
import { abortRun, beginRun, type RunEnd, type RunRequest, readRun, waitForRun } from '#openclaw/gateway/runs.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import type { TurnApprovals } from './approvals.ts'
import { errorTexts } from './error-texts.ts'
import { type AgentEvent, brokenAnswer, maxAnswerBytes, type Usage } from './gateway-answer.ts'
import type { Turn } from './turn.ts'

/** The pause before a gateway that went away is tried again, in ms. */
const reconnectPauseMs = 1000
/** A run that was sent this long ago and left no trace is not sent again: its session may have been deleted since. */
const resendWithinMs = 60_000
/** How long the rows of a run may be missing after its end or its begin, and the pause between two reads, in ms. */
const settleMs = 5000
/** How long its session may show a run as running after its end, in ms. A gateway with many runs takes seconds. */
const closeMs = 60_000
/** OpenClaw goes on with interrupted runs one after the other, 8 to 41 s after its start. */
const recoverMs = 3 * 60_000
const firstSettlePauseMs = 20
const settlePauseMs = 500

/** A turn as a run that its gateway goes on with when Chowder's connection closes. */
export interface AgentRun {
  id: string
  organizationId: string
  instanceId: string
  request: RunRequest
  /** Whether OpenClaw goes on with it after the end of its gateway. */
  isResumed: boolean
  /** Called with the events of the agent's tools while there is a connection. */
  onTool?: (event: ToolEvent) => void
  approvals: TurnApprovals
  /** The ids of the approvals that waited when the process before this one ended. */
  pendingApprovals(): readonly string[]
  /** How long ago it was first sent, in ms; null for one that was not. */
  sentMsAgo: number | null
  /** The text that its stream has sent so far, from an earlier process. Null: only its last message is wanted, whole. */
  saidBefore: string | null
  /** Records durably that the run is about to be sent. Throws when the run belongs to another process now. */
  recordSending(): Promise<void>
  /** Called before the run is sent for the first time, with its gateway. */
  prepare(gateway: RunningGateway): Promise<void>
  /** The error of a run that has failed at its gateway. */
  findFailure(gateway: RunningGateway): Promise<AppError>
}

export interface AgentRunDeps {
  watches: Watches
  findGateway: FindGateway
  findSummary: FindSummary
}

const interrupted = () => new AppError('turn_interrupted', errorTexts.interrupted, { doNotRetry: true })

/**
 * The growing text of a run. A paused one says nothing before its end: what a connection missed is in the session alone.
 */
class GrowingRun {
  #base = ''
  #texts = new Map<string, string>()
  #said: string
  readonly #isHeldBack: boolean
  #isPaused: boolean
  #changed = Promise.withResolvers<void>()

  constructor(saidBefore: string | null) {
    this.#said = saidBefore ?? ''
    this.#isHeldBack = saidBefore === null
    this.#isPaused = this.#isHeldBack
  }

  get changed(): Promise<void> {
    return this.#changed.promise
  }

  pause(): void {
    this.#isPaused = true
  }

  /** Goes on with the text of another run after what was said. */
  restart(): void {
    this.#base = this.#said
    this.#texts.clear()
    this.#isPaused = this.#isHeldBack
  }

  add(event: RunEvent): void {
    if (event.kind !== 'text' || this.#isPaused) return
    this.#texts.set(event.itemId, event.text)
    this.#changed.resolve()
  }

  /** The new text since the last call. Throws AppError gateway_unreachable for a text that is too large. */
  take(): string {
    this.#changed = Promise.withResolvers<void>()
    return this.#reach([...this.#texts.values()].join(''))
  }

  /** The rest of the text at the end of a run. */
  end({ text, lastMessage }: RunEnd): string {
    return this.#reach(this.#isHeldBack ? lastMessage : text)
  }

  /** The new text, up to a text of the run. */
  #reach(ofRun: string): string {
    const text = this.#base + ofRun
    if (Buffer.byteLength(text) > maxAnswerBytes) throw brokenAnswer(errorTexts.tooLarge)
    if (!text.startsWith(this.#said)) return ''
    const piece = text.slice(this.#said.length)
    this.#said = text
    return piece
  }
}

function usageOf(end: RunEnd): Usage | null {
  if (!end.usage) return null
  const { input, output, cacheRead, cacheWrite } = end.usage
  const all = input + cacheRead + cacheWrite
  return {
    input_tokens: all,
    input_tokens_details: { cached_tokens: cacheRead, cache_write_tokens: cacheWrite },
    output_tokens: output,
    output_tokens_details: { reasoning_tokens: 0 },
    total_tokens: all + output,
  }
}

/** Rejects with the reason of a turn that ends. */
function untilEnded({ signal }: Turn): Promise<never> {
  const { promise, reject } = Promise.withResolvers<never>()
  const end = () => reject(signal.reason)
  if (signal.aborted) end()
  else signal.addEventListener('abort', end, { once: true })
  promise.catch(() => {}) // may be observed later, or never
  return promise
}

/**
 * Runs or adopts a run. Yields the growing text, then one end; both come from the session when the connection broke
 * meanwhile. Sends the run at most once: before it is sent again, its session is read. A gateway that goes away is tried
 * again until the turn ends. Throws the reason of the turn, and AppError when the run cannot be begun, was interrupted
 * by the end of its gateway, or its instance is stopped or restarted. An abandoned run goes on at its gateway.
 */
export async function* followRun(deps: AgentRunDeps, turn: Turn, run: AgentRun): AsyncGenerator<AgentEvent[]> {
  let sentAt = run.sentMsAgo === null ? null : performance.now() - run.sentMsAgo
  const growing = new GrowingRun(run.saidBefore)
  const ended = untilEnded(turn)
  let runId = run.id
  let onApproval: (id: string) => void = () => {}
  const onRunEvent = (event: RunEvent) => {
    if (event.runId !== runId) return
    if (event.kind === 'approval') onApproval(event.approvalId)
    else if (event.kind === 'tool') run.onTool?.(event)
    else growing.add(event)
  }
  for (let attempt = 0; ; attempt += 1) {
    if (attempt > 0) await sleepUnless(turn.signal)
    const gateway = await untilRunning(deps, turn, run, sentAt !== null)
    if (!gateway) continue
    try {
      const opening = deps.watches.open(gateway, onRunEvent)
      const watch = await Promise.race([opening, ended]).catch((error: unknown) => {
        opening.then(({ release }) => release()).catch(() => {}) // it may open after the end of the turn
        throw error
      })
      onApproval = (id) => run.approvals.read(watch.gateway, id)
      try {
        if (sentAt === null) {
          await run.prepare(gateway)
          turn.signal.throwIfAborted()
          turn.ask()
          await run.recordSending()
          sentAt = performance.now()
          await beginRun(watch.gateway, run.id, run.request)
        } else {
          growing.pause()
          const goesOn = await resume(watch.gateway, run, sentAt)
          if (goesOn !== runId) growing.restart()
          runId = goesOn
          if (gateway.asks) run.approvals.catchUp(watch.gateway, runId, run.pendingApprovals())
        }
        const end = untilRunEnds(watch.gateway, run, runId)
        end.catch(() => {}) // observed below, unless the turn ends first
        for (let isOver = false; !isOver; ) {
          isOver = await Promise.race([end.then(() => true), growing.changed.then(() => false), ended])
          const text = growing.take()
          if (text !== '') yield [{ kind: 'text', text }]
        }
        const reached = await end
        if (!reached || reached.status === 'failed') throw await run.findFailure(gateway)
        return yield lastEvents(growing, { ...reached, status: reached.status })
      } finally {
        watch.release()
      }
    } catch (error) {
      if (turn.signal.aborted || !(error instanceof GatewayUnreachable)) throw refusal(error)
    }
  }
}

const refusal = (error: unknown): unknown =>
  error instanceof GatewayRefusal
    ? new AppError('openclaw_refused', error.message.slice(0, 1000), { cause: error })
    : error

const sleepUnless = (signal: AbortSignal) =>
  sleep(reconnectPauseMs, undefined, { signal }).catch((error: unknown) => {
    throw signal.aborted ? signal.reason : error
  })

/** Finds the gateway of an instance; null while it starts, or the database is away. Throws AppError when it will not. */
async function untilRunning({ findSummary, findGateway }: AgentRunDeps, turn: Turn, run: AgentRun, isSent: boolean) {
  turn.signal.throwIfAborted()
  try {
    const summary = await findSummary(run.organizationId, run.instanceId)
    if (!isSent && isSleeping(summary)) {
      await findGateway(run.organizationId, run.instanceId, { waits: false })
      return null
    }
    if (summary.desiredState !== 'running')
      throw new AppError('instance_stopping', errorTexts.instanceStopping, { doNotRetry: true })
    if (publicStatus(summary) === 'error') return await findGateway(run.organizationId, run.instanceId) // throws why
    if (isSent && summary.restartGeneration !== null && summary.readyAt === null)
      throw new AppError('instance_restarting', errorTexts.instanceRestarting, { doNotRetry: true })
    return summary.readyAt === null ? null : await findGateway(run.organizationId, run.instanceId)
  } catch (error) {
    if (isDatabaseDown(error)) return null
    throw error
  }
}

/**
 * Finds a run that was sent, and sends it again if its gateway never got it. Returns the id of the run that goes on.
 * Throws AppError turn_interrupted.
 */
async function resume(gateway: GatewayClient, run: AgentRun, sentAt: number): Promise<string> {
  const { kind, runId } = await settled(gateway, run)
  if (kind === 'running' || kind === 'ended') return runId
  // Without any trace it did not begin. Within some minutes a gateway recognizes a repeated key by itself.
  if (kind === 'interrupted' || performance.now() - sentAt > resendWithinMs) throw interrupted()
  await beginRun(gateway, run.id, run.request)
  return run.id
}

/**
 * Reads the state of a run, again while a run that has just begun, ended (`hasEnded`) or recovered may not be in its
 * session yet.
 */
async function settled(gateway: GatewayClient, { id, request, isResumed }: AgentRun, hasEnded = false) {
  const begunAt = performance.now()
  for (let pauseMs = firstSettlePauseMs; ; pauseMs = Math.min(2 * pauseMs, settlePauseMs)) {
    const state = await readRun(gateway, request.sessionKey, id)
    if (state.kind === 'ended' || (state.kind === 'running' && !hasEnded)) return state
    const recovers = state.kind === 'interrupted' && isResumed
    const waitMs = recovers ? recoverMs : state.kind === 'running' ? closeMs : settleMs
    if (performance.now() - begunAt > waitMs) return state
    await sleep(pauseMs)
  }
}

/** Resolves with the end of a run; null for one that ended without a trace, such as an aborted one. */
async function untilRunEnds(gateway: GatewayClient, run: AgentRun, runId: string): Promise<RunEnd | null> {
  for (;;) {
    const hasEnded = await waitForRun(gateway, runId)
    const state = await settled(gateway, run, hasEnded)
    if (state.kind === 'ended') return state.end
    if (hasEnded) return null
    if (state.kind !== 'running') throw interrupted()
  }
}

function lastEvents(growing: GrowingRun, end: RunEnd & { status: 'completed' | 'incomplete' }): AgentEvent[] {
  const text = growing.end(end)
  return [
    ...(text === '' ? [] : [{ kind: 'text' as const, text }]),
    { kind: 'end', status: end.status, usage: usageOf(end) },
  ]
}

/** Ends a run at its gateway, if that can be reached now. */
export async function endRun({ watches, findGateway }: AgentRunDeps, run: AgentRun): Promise<void> {
  const watch = await watches.open(await findGateway(run.organizationId, run.instanceId), () => {})
  try {
    await abortRun(watch.gateway, run.request.sessionKey, run.id)
  } finally {
    watch.release()
  }
}
