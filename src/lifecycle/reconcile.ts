import { isDeepStrictEqual } from 'node:util'
import { sql } from 'drizzle-orm'
import { instances } from '#database/schema.ts'
import { findIntent } from '#history/record.ts'
import { IntentChanged, type Lease, takeDue, withLease } from '#instances/lease.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import type { Logger } from '#platform/log.ts'
import { stepDuration, timeToRunning } from '#platform/metrics.ts'
import {
  alarmingAttempts,
  backoffSeconds,
  isFinal,
  maxAttempts,
  messageFor,
  StepFailure,
  Uncounted,
} from './failures.ts'
import { endedEarly, howItEnded, lastWords } from './health.ts'
import type { Step, StepContext, StepDeps } from './step.ts'
import { plans } from './steps.ts'

export interface LifecycleDeps extends StepDeps {
  queue: InstanceQueue
  log: Logger
}

/** For an attempt that says nothing about the instance. */
const notCounted = sql`greatest(${instances.attempts} - 1, 0)`

/** Drives one instance to its desired state; returns at once when it is not due or another worker is at it. */
export async function reconcileInstance(deps: LifecycleDeps, id: string, stop: AbortSignal): Promise<void> {
  const takenAt = performance.now()
  const taken = await takeDue(deps.db, id, deps.sandboxes.name)
  if (!taken) return
  const log = deps.log.child({ instanceId: id, organizationId: taken.organizationId, generation: taken.generation })
  const after = await withLease(deps.db, taken, takenAt, stop, (lease) => work({ ...deps, log }, lease, stop))
  if (after?.due) deps.queue.enqueue(after.instance)
}

async function work(deps: LifecycleDeps, lease: Lease, stop: AbortSignal): Promise<void> {
  const take = { startedGateway: false }
  try {
    if (await isUsedUp(deps, lease)) {
      return await giveUp(deps, lease, await whyUsedUp(deps, lease))
    }
    while (!(await converge(deps, lease, take)));
  } catch (error) {
    // A deploy is no failure of the instance: the next worker starts with the same count.
    if (stop.aborted) return await lease.write({ attempts: notCounted })
    if (lease.signal.aborted) throw error // somebody else's now
    await fail(deps, lease, error)
  }
}

/** Whether all attempts went without a gateway that lasts. One that runs is looked after, whatever came before. */
async function isUsedUp({ sandboxes }: LifecycleDeps, { instance, signal }: Lease): Promise<boolean> {
  if (instance.desiredState !== 'running' || instance.attempts <= maxAttempts) return false
  return instance.readyAt === null || (await sandboxes.observe(instance.id, signal)).state !== 'running'
}

/** Why no attempt lasted: the last failure, or how the gateway ended that came up each time, with its last words. */
async function whyUsedUp(deps: LifecycleDeps, lease: Lease): Promise<string> {
  if (lease.instance.errorMessage !== null) return lease.instance.errorMessage
  const { state, exit } = await deps.sandboxes.observe(lease.instance.id, lease.signal)
  if (state !== 'stopped' || !exit) return 'The worker ended each time it was at it.'
  const words = await lastWords({ ...deps, lease })
  return `The gateway ended by itself ${maxAttempts} times, the last time with: ${howItEnded(exit)}. ${words}`
}

/** One pass over the plan; true once the row is settled, false when the intent has changed on the way. */
async function converge(deps: LifecycleDeps, lease: Lease, take: { startedGateway: boolean }): Promise<boolean> {
  await lease.write({ step: null }) // reads the row again: the intent may be a newer one
  const { generation, desiredState } = lease.instance
  const signal = lease.untilIntentChanges()
  const context: StepContext = { ...deps, lease, signal, started: false }
  let last: Parameters<Lease['settle']>[1]
  try {
    for (const { step, limitMs } of plans[desiredState]) {
      signal.throwIfAborted()
      await lease.write({ step: step.name })
      const measure = stepDuration.startTimer({ step: step.name })
      await withLimit(step, limitMs, context, signal).catch((error: unknown) => {
        measure({ outcome: signal.aborted ? 'left' : error instanceof Uncounted ? 'postponed' : 'failed' })
        throw error
      })
      const seconds = measure({ outcome: 'done' })
      deps.log.info({ step: step.name, ms: Math.round(seconds * 1000) }, 'step done')
      take.startedGateway ||= context.started
    }
    last = await outcome({ ...context, signal }, take.startedGateway)
  } catch (error) {
    if (signal.reason instanceof IntentChanged && !lease.signal.aborted) return false
    throw error
  }
  const settled = await lease.settle(generation, last)
  if (!settled) return false
  deps.log.info({ desiredState }, 'settled')
  if (last.readyAt) await noteTimeToRunning(deps, lease.instance.id, generation)
  return true
}

/** Only where an intent asked for it: a gateway that came back by itself was not waited for. */
async function noteTimeToRunning({ db, log }: LifecycleDeps, id: string, generation: number): Promise<void> {
  const asked = await findIntent(db, id, generation).catch((err: unknown) => log.warn({ err }, 'a figure is missing'))
  if (asked) timeToRunning.observe({ intent: asked.intent }, asked.seconds)
}

/** How long a step may take to end once it was told to. */
const abortGraceMs = 10_000

/** Runs a step that must end in time; one that ignores that it was told to is left behind, and the row is released. */
async function withLimit(step: Step, limitMs: number, context: StepContext, signal: AbortSignal): Promise<void> {
  const late = new AbortController()
  context.signal = AbortSignal.any([signal, late.signal])
  const tooLate = () => new StepFailure(`The step ${step.name} took longer than ${limitMs / 1000} s.`)
  const { promise: leaving, reject: leave } = Promise.withResolvers<never>()
  // Cleared at the end: a signal with a timeout of its own would keep the whole pass in memory until then.
  const timers = [
    setTimeout(() => late.abort(tooLate()), limitMs),
    setTimeout(() => leave(tooLate()), limitMs + abortGraceMs),
  ]
  const running = step(context).catch((error: unknown) => {
    throw late.signal.aborted && !signal.aborted ? tooLate() : error
  })
  await Promise.race([running, leaving]).finally(() => timers.forEach(clearTimeout))
}

/** What is known once the plan is done. Attempts start anew unless the gateway has yet to show that it lasts. */
async function outcome(context: StepContext, startedGateway: boolean): Promise<Parameters<Lease['settle']>[1]> {
  const { sandboxes, lease, signal } = context
  const { instance } = lease
  const attempts = startedGateway ? instance.attempts : 0
  if (instance.desiredState === 'stopped') return { attempts, errorMessage: null }
  if (instance.desiredState === 'terminated') {
    return {
      attempts,
      errorMessage: null,
      endpoint: null,
      ...(instance.endpoint !== null && { updatedAt: sql`now()` }),
    }
  }
  const seen = await sandboxes.observe(instance.id, signal)
  const { endpoint, sandboxId } = seen
  if (!endpoint) throw await endedEarly(context, seen)
  const isNews = instance.readyAt === null || !isDeepStrictEqual(endpoint, instance.endpoint)
  return {
    attempts,
    errorMessage: null,
    endpoint,
    sandboxId,
    ...(instance.readyAt === null && { readyAt: sql`now()` }),
    ...(isNews && { updatedAt: sql`now()` }),
  }
}

/** Puts the row off for its next attempt, or gives it up. What is to end is never given up. */
async function fail(deps: LifecycleDeps, lease: Lease, error: unknown): Promise<void> {
  const { desiredState, generation, attempts, step } = lease.instance
  const message = messageFor(error, step)
  if (error instanceof Uncounted) {
    deps.log.warn({ step, err: error }, 'step postponed')
    await lease.write({ attempts: notCounted })
    return await lease.postpone(generation, error.pauseSeconds, message)
  }
  const isAlarming = desiredState !== 'running' && attempts >= alarmingAttempts
  deps.log[isAlarming ? 'error' : 'warn']({ err: error, step, attempts, desiredState }, 'step failed')
  if (desiredState === 'running' && (isFinal(error) || attempts >= maxAttempts)) return giveUp(deps, lease, message)
  const seconds = backoffSeconds(attempts)
  await lease.postpone(generation, seconds, message)
}

/** Settles a row that should run as an error with its reason, once what was started is stopped. */
async function giveUp(deps: LifecycleDeps, lease: Lease, errorMessage: string): Promise<void> {
  const { log } = deps
  const { generation, attempts } = lease.instance
  try {
    const context: StepContext = { ...deps, lease, signal: lease.signal, started: false }
    for (const { step, limitMs } of plans.stopped) await withLimit(step, limitMs, context, lease.signal)
  } catch (error) {
    lease.signal.throwIfAborted()
    log.error({ err: error }, 'an instance that is given up could not be stopped; it stays due')
    await lease.postpone(generation, backoffSeconds(attempts), errorMessage)
    return
  }
  const settled = await lease.settle(generation, { readyAt: null, errorMessage, updatedAt: sql`now()` })
  if (settled) log.warn('given up; the reason is in the instance')
}
