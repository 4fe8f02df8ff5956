import { isDeepStrictEqual } from 'node:util'
import { sql } from 'drizzle-orm'
import type { ProcessFacts } from '#database/processes.ts'
import { erasedSecrets, type Instance, instances } from '#database/schema.ts'
import { findIntent, findRequest } from '#history/find-intent.ts'
import { changedBy } from '#history/record.ts'
import { failureMessage } from '#instances/failure-message.ts'
import { IntentChanged, type Lease, type TakenInstance, withLease } from '#instances/lease.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import type { Logger } from '#platform/log.ts'
import { timeToRunning } from '#platform/metrics.ts'
import type { Observation } from '#sandbox/driver.ts'
import { alarmingAttempts, backoffSeconds, failureOf, logFieldsOf, maxAttempts, messageOf } from './failures.ts'
import { describeExit, endedDuringStart, readLastOutput } from './health.ts'
import { plans } from './plans.ts'
import type { PlatformOutage } from './platform-outage.ts'
import { runMeasuredStep, runStep } from './run-step.ts'
import { type Again, done, type Failure, type StepDeps, type StepOutcome } from './step.ts'

/** The dependencies of a worker in one region. */
export interface LifecycleDeps extends StepDeps {
  queue: InstanceQueue
  platformOutage: PlatformOutage
  log: Logger
}

/** The dependencies of a worker. */
export interface WorkerDeps extends Pick<LifecycleDeps, 'db' | 'queue' | 'log'> {
  /** The id of this process in the table `processes`. */
  processId: string
  /** The processes of the last beat; empty before the first. */
  alive(): readonly Pick<ProcessFacts, 'id' | 'regions'>[]
  /** The dependencies in each region that it serves. */
  regions(): readonly LifecycleDeps[]
}

/** Columns that are written when a row is settled. */
type SettledFields = Parameters<Lease['settle']>[1]

/** Takes back the count of an attempt that is no evidence against the instance. */
const notCounted = sql`greatest(${instances.attempts} - 1, 0)`

/**
 * Makes one attempt to bring an instance to its desired state, under the lease of a claim sent at `takenAt`. A crash
 * leaves the row due: the lease expires, and the next attempt starts over.
 */
export async function reconcileInstance(
  deps: LifecycleDeps,
  taken: TakenInstance,
  takenAt: number,
  stop: AbortSignal,
): Promise<void> {
  const { id, organizationId } = taken
  const instanceLog = deps.log.child({ instanceId: id, organizationId, region: deps.region })
  const scoped = { ...deps, instanceLog, log: logOf(instanceLog, taken) }
  const released = await withLease(deps.db, taken, takenAt, stop, async (lease) => {
    const outcome = await attempt(scoped, lease, stop).finally(() => deps.starts.leave(id))
    if (outcome.kind === 'again') await postpone(scoped, lease, outcome)
    else if (outcome.kind !== 'done') await handleFailure(scoped, lease, outcome)
  })
  if (released?.due) deps.queue.enqueue()
}

/** The dependencies of one attempt. */
interface AttemptDeps extends LifecycleDeps {
  instanceLog: Logger
  /** Its lines name the intent of the attempt and the request that wrote it. */
  log: Logger
}

const logOf = (log: Logger, { generation, requestId }: Pick<TakenInstance, 'generation' | 'requestId'>) =>
  log.child({ generation, ...(requestId !== null && { requestId }) })

/** Neither a shutdown of the worker nor a platform that is away counts as a failure: the row stays due as it was. */
async function attempt(deps: AttemptDeps, lease: Lease, stop: AbortSignal): Promise<StepOutcome> {
  const { platformOutage } = deps
  try {
    const outcome = platformOutage.isAway ? null : await convergeOrGiveUp(deps, lease)
    const isAway = outcome?.kind === 'failed' && (await platformOutage.probe(lease.signal))
    if (outcome && !isAway) return outcome
  } catch (error) {
    if (!stop.aborted) throw error // another worker may hold the row, so nothing may be written
  }
  await lease.write({ attempts: notCounted })
  return done
}

/** Throws only when the signal of the lease is aborted. */
async function convergeOrGiveUp(deps: AttemptDeps, lease: Lease): Promise<StepOutcome> {
  try {
    if (!(await areAttemptsUsedUp(deps, lease))) return await converge(deps, lease)
    await giveUp(deps, lease, await reasonForGivingUp(deps, lease))
    return done
  } catch (error) {
    lease.signal.throwIfAborted()
    return failureOf(error, lease.instance.step)
  }
}

/**
 * Whether an instance that should run has used all its attempts before this one. The last failed attempt gives the
 * instance up (see `handleFailure`), so three cases remain. The worker process ended during each attempt. Each attempt
 * succeeded, and the gateway ended soon after: attempts are reset only after 10 healthy minutes. Or the instance was
 * given up and its sandbox could not be stopped. A ready, running gateway is always kept under watch.
 */
async function areAttemptsUsedUp({ sandboxes }: LifecycleDeps, { instance, signal }: Lease): Promise<boolean> {
  if (instance.desiredState !== 'running' || instance.attempts <= maxAttempts) return false
  return instance.readyAt === null || (await sandboxes.observe(instance.id, signal)).state !== 'running'
}

async function reasonForGivingUp(deps: LifecycleDeps, lease: Lease): Promise<string> {
  if (lease.instance.errorMessage !== null) return lease.instance.errorMessage
  const { state, exit } = await deps.sandboxes.observe(lease.instance.id, lease.signal)
  if (state !== 'stopped' || !exit) return 'The worker process ended during each attempt.'
  const output = await readLastOutput({ ...deps, lease })
  const sentence = `The gateway ended by itself ${maxAttempts} times, the last time with: ${describeExit(exit)}.`
  return failureMessage(sentence, output)
}

/** Runs plans until one is completed for the latest intent, or a step is not done. */
async function converge(deps: AttemptDeps, lease: Lease): Promise<StepOutcome> {
  let startedGateway = false
  let loggedGeneration = lease.instance.generation
  for (;;) {
    await lease.write({ step: null }) // rereads the row: the intent may have changed
    const { id, generation } = lease.instance
    if (generation !== loggedGeneration) {
      deps.log = logOf(deps.instanceLog, { generation, requestId: await findRequest(deps.db, id, generation) })
      loggedGeneration = generation
    }
    const outcome = await runPlan(deps, lease, startedGateway)
    if (outcome.kind !== 'intent changed') return outcome
    startedGateway = outcome.startedGateway
  }
}

interface IntentChange {
  kind: 'intent changed'
  /** Whether this attempt has already started the gateway. */
  startedGateway: boolean
}

/** Runs the plan of the current intent and settles the row; abandons it when the intent changes meanwhile. */
async function runPlan(deps: LifecycleDeps, lease: Lease, startedBefore: boolean): Promise<StepOutcome | IntentChange> {
  const { id, generation, desiredState } = lease.instance
  const context = { ...deps, lease, signal: lease.untilIntentChanges() }
  const { signal } = context
  let startedGateway = false
  const took: string[] = []
  try {
    for (const planned of plans[desiredState]) {
      signal.throwIfAborted()
      await lease.write({ step: planned.step.name })
      const beganAt = performance.now()
      const outcome = await runMeasuredStep({ ...context, startedGateway }, planned)
      if (outcome.kind !== 'done') return outcome
      took.push(`${planned.step.name} ${Math.round(performance.now() - beganAt)} ms`)
      startedGateway ||= outcome.startedGateway
    }
    const seen = desiredState === 'running' ? await deps.sandboxes.observe(id, signal) : null
    if (seen && !seen.endpoint) {
      const failure = await endedDuringStart(context, seen)
      signal.throwIfAborted()
      return failure
    }
    const fields = settledFields(lease.instance, seen, startedBefore || startedGateway)
    if (await lease.settle(generation, { ...fields, changedBy: changedBy({ reason: took.join(', ') }) })) {
      deps.log.info({ desiredState }, 'settled')
      if (fields.readyAt) await measureTimeToRunning(deps, id, generation)
      return done
    }
  } catch (error) {
    const hasIntentChanged = signal.reason instanceof IntentChanged && !lease.signal.aborted
    if (!hasIntentChanged) throw error
  }
  return { kind: 'intent changed', startedGateway: startedBefore || startedGateway }
}

/** The columns of a completed plan. Attempts are reset, except after a start: the new gateway must first stay up. */
function settledFields(instance: Instance, seen: Observation | null, startedGateway: boolean): SettledFields {
  const fields = { attempts: startedGateway ? instance.attempts : 0, errorMessage: null }
  if (instance.desiredState === 'stopped') return fields
  const updatedAt = sql`now()`
  if (!seen) {
    return { ...fields, ...erasedSecrets, endpoint: null, ...(instance.endpoint !== null && { updatedAt }) }
  }
  const { endpoint, sandboxId } = seen
  const isNew = instance.readyAt === null
  const isMoved = !isDeepStrictEqual(endpoint, instance.endpoint)
  return {
    ...fields,
    endpoint,
    sandboxId,
    ...(isNew && { readyAt: sql`now()` }),
    ...((isNew || isMoved) && { updatedAt }),
  }
}

/** Measured only for an intent of a caller, not for a gateway that is restarted after it ended by itself. */
async function measureTimeToRunning({ db, log }: LifecycleDeps, id: string, generation: number): Promise<void> {
  const asked = await findIntent(db, id, generation).catch((err: unknown) =>
    log.warn({ err }, 'could not measure the time to running'),
  )
  if (asked) timeToRunning.observe({ intent: asked.intent }, asked.seconds)
}

async function postpone({ log }: LifecycleDeps, lease: Lease, { reason, afterSeconds }: Again): Promise<void> {
  const { generation, step } = lease.instance
  log.warn({ step, reason }, 'step postponed')
  await lease.write({ attempts: notCounted })
  await lease.postpone(generation, afterSeconds, reason)
}

/** Postpones the row to its next attempt, or gives it up. Stops and deletes are never given up. */
async function handleFailure(deps: LifecycleDeps, lease: Lease, failure: Failure): Promise<void> {
  const { desiredState, generation, attempts, step } = lease.instance
  const isToRun = desiredState === 'running'
  const level = !isToRun && attempts >= alarmingAttempts ? 'error' : 'warn'
  deps.log[level]({ ...logFieldsOf(failure), step, attempts, desiredState }, 'step failed')
  const isLast = failure.kind === 'failed for good' || attempts >= maxAttempts
  if (isToRun && isLast) return giveUp(deps, lease, messageOf(failure))
  await lease.postpone(generation, backoffSeconds(attempts), messageOf(failure))
}

/** Stops the sandbox of an instance that should run, then settles it as an error. It stays due if the stop fails. */
async function giveUp(deps: LifecycleDeps, lease: Lease, errorMessage: string): Promise<void> {
  const { log } = deps
  const { generation, attempts } = lease.instance
  const context = { ...deps, lease, signal: lease.signal, startedGateway: false }
  for (const planned of plans.stopped) {
    const outcome = await runStep(context, planned)
    if (outcome.kind === 'done') continue
    log.error(logFieldsOf(outcome), 'could not stop an instance that is given up; it stays due')
    return lease.postpone(generation, backoffSeconds(attempts), errorMessage)
  }
  const isSettled = await lease.settle(generation, { readyAt: null, errorMessage, updatedAt: sql`now()` })
  if (isSettled) log.warn('the instance is given up; its error_message has the reason')
}
