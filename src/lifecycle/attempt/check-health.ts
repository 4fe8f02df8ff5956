import { readDatabaseMs } from '#database/clock.ts'
import type { Activity } from '#sandbox/driver.ts'
import { busyAgain, busyPauseSeconds, diagnose } from './diagnose.ts'
import { isAnswering, waitUntilReady } from './health.ts'
import { again, done, type Step, type StepContext, type StepOutcome } from './step.ts'
import { createSandbox, forgetReadiness, startGateway, writeConfig } from './steps.ts'

/**
 * Waits until the gateway is ready. A gateway that was ready and stops answering is restarted only when it hangs:
 * OpenClaw answers and works on one event loop, and a broken network between Chowder and an agent does not justify a
 * restart.
 */
export const checkHealth: Step = async (context) => {
  const { lease, sandboxes, signal } = context
  const { readyAt, busy } = lease.instance
  if (readyAt === null) return waitUntilReady(context)
  const isWell = await isAnswering(context, await sandboxes.observe(lease.instance.id, signal))
  const diagnosis = isWell ? ('answering' as const) : await diagnose(context)
  if (typeof diagnosis === 'object') return waitWhileBusy(context, diagnosis)
  if (diagnosis === 'hung') return restartHungGateway(context)
  if (busy) await lease.write({ busy: null })
  return diagnosis === 'answering' ? done : again(busyPauseSeconds, 'The gateway runs, but Chowder cannot reach it.')
}

/**
 * A hung event loop can look busy. The count of context switches distinguishes them over all checks of all workers, and
 * does not depend on their clocks.
 */
async function waitWhileBusy(context: StepContext, { switches }: Activity): Promise<StepOutcome> {
  const { db, lease, timeouts } = context
  const { busy } = lease.instance
  const now = await readDatabaseMs(db)
  const since = busy?.switches === switches ? busy.since : new Date(now).toISOString()
  if (now - Date.parse(since) >= timeouts.busyMs) return restartHungGateway(context)
  await lease.write({ busy: { since, switches } })
  return busyAgain
}

/** The gateway gets no grace period: it is hung, so it cannot end its turns. */
async function restartHungGateway(context: StepContext): Promise<StepOutcome> {
  const { lease, log, sandboxes, signal } = context
  log.warn('the gateway hangs and is restarted')
  await sandboxes.stop(lease.instance.id, { graceMs: 0 }, signal)
  await forgetReadiness(lease, 'hung', 'The gateway did not answer any more and was stopped.')
  // A sandbox of another version reads other files.
  for (const step of [createSandbox, writeConfig]) {
    const outcome = await step(context)
    if (outcome.kind !== 'done') return outcome
  }
  const started = await startGateway(context)
  if (started.kind !== 'done') return started
  const ready = await waitUntilReady(context)
  return ready.kind === 'done' ? started : ready
}
