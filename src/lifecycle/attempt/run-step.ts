import pTimeout from 'p-timeout'
import { stepDuration } from '#platform/metrics.ts'
import { failureOf } from './failures.ts'
import { failed, type Step, type StepContext, type StepOutcome } from './step.ts'

export interface PlannedStep {
  step: Step
  limitMs: number
}

/** How long a step may take to end after its abort. */
const abortGraceMs = 10_000

/**
 * Runs a step, and fails it when it exceeds its limit. A step that ignores its abort is left behind, so that the row
 * can be released. Throws only the context signal's reason, once that signal is aborted.
 */
export async function runStep(context: StepContext, { step, limitMs }: PlannedStep): Promise<StepOutcome> {
  const tooLate = failed(`The step ${step.name} took longer than ${limitMs / 1000} s.`)
  const late = new AbortController()
  const signal = AbortSignal.any([context.signal, late.signal])
  // Cleared at the end: AbortSignal.timeout would keep the context in memory until it fires.
  const timer = setTimeout(() => late.abort(new Error(tooLate.reason)), limitMs)
  const running = step({ ...context, signal })
  const outcome = await pTimeout(running, { milliseconds: limitMs + abortGraceMs, fallback: () => tooLate })
    .catch((error: unknown) => failureOf(error, step.name))
    .finally(() => clearTimeout(timer))
  if (outcome.kind === 'done') return outcome
  context.signal.throwIfAborted()
  return late.signal.aborted ? tooLate : outcome
}

const outcomeLabels = { done: 'done', again: 'postponed', failed: 'failed', 'failed for good': 'failed' } as const

/** Runs a step of a plan with `runStep`, measures its duration and logs its end. */
export async function runMeasuredStep(context: StepContext, planned: PlannedStep): Promise<StepOutcome> {
  const step = planned.step.name
  const endTimer = stepDuration.startTimer({ step })
  try {
    const outcome = await runStep(context, planned)
    const seconds = endTimer({ outcome: outcomeLabels[outcome.kind] })
    if (outcome.kind === 'done') context.log.info({ step, ms: Math.round(seconds * 1000) }, 'step done')
    return outcome
  } catch (error) {
    endTimer({ outcome: 'left' })
    throw error
  }
}
