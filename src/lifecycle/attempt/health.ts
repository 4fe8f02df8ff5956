import { createInstanceMask } from '#instances/gateway/secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { poll } from '#platform/poll.ts'
import type { Observation } from '#sandbox/driver.ts'
import { done, type Failure, failed, type StepContext, type StepOutcome } from './step.ts'

/** Lines that advise an operator to run a command: owners have no command line in a sandbox. */
const advice = /openclaw doctor|\bRun "openclaw\b|adjacent \.bak backup/i
/** The gateway's timestamp and a position in its configuration file, which Chowder writes. */
const linePrefix = /^(\d{4}-\d{2}-\d{2}T[\d:.]+(Z|[+-]\d{2}:\d{2}) )?(openclaw\.json(:\d+)* — )?/
/** An absolute path: its folders are those of the host. A URL does not begin with a slash. */
const hostPath = /(?<=^|[\s"'`(=])\/(?:[^\s"'`():;,/]+\/)+(?=[^\s"'`():;,/])/g

/** Filters a gateway's output for the owner of the instance: removes paths of the host and advice for operators. */
export const forOwner = (output: string): string =>
  output
    .split('\n')
    .filter((line) => !advice.test(line))
    .map((line) => line.replace(linePrefix, '').replace(hostPath, ''))
    .join('\n')
    .trim()

const startPauseMs = 100
const probeTimeoutMs = 2000
const progressLines = 20
/** Reading the output costs more than a probe, so only one in this many checks reads it. */
const checksPerProgress = 10
const outputTimeoutMs = 15_000

export const isAnswering = async (
  { signal }: StepContext,
  { endpoint }: Observation,
  path: '/healthz' | '/startupz' = '/healthz',
) => endpoint !== null && probeHealth(endpoint, path, { timeoutMs: probeTimeoutMs, signal })

/**
 * Waits until a starting gateway is ready. Fails when the gateway ends or takes too long, and stops it in the second
 * case: a gateway that hangs at its start would hang for the next attempt too. Asks `/startupz`, not `/readyz`: that
 * one fails while any chat channel does, and a wrong bot token is no reason to stop an agent.
 */
export async function waitUntilReady(context: StepContext): Promise<StepOutcome> {
  const { lease, sandboxes, starts, timeouts, signal } = context
  const { id } = lease.instance
  const startedAt = performance.now()
  let progressAt = startedAt
  let output = ''
  let checks = 0
  const outcome = await poll(
    async () => {
      const seen = await sandboxes.observe(id, signal)
      if (seen.state !== 'running') return endedDuringStart(context, seen)
      if (await isAnswering(context, seen, '/startupz')) return done
      if (checks++ % checksPerProgress === 0) {
        const latest = await outputOf(context, progressLines)
        if (latest !== output) progressAt = performance.now()
        output = latest
      }
      return performance.now() - progressAt > timeouts.startWithoutProgressMs && 'no progress'
    },
    { pauseMs: startPauseMs, timeoutMs: timeouts.startMs, signal },
  )
  if (outcome && outcome !== 'no progress') {
    if (outcome.kind === 'done') starts.leave(id)
    return outcome
  }
  const seconds = Math.round((performance.now() - startedAt) / 1000)
  await sandboxes.stop(id, { graceMs: timeouts.graceMs }, signal)
  return failed(`The gateway was not ready after ${seconds} s.`)
}

/** OpenClaw's exit code for an invalid configuration. */
const configurationExitCode = 78
/** OpenClaw uses the same exit code when a busy host kept it from refreshing the lock on its state. */
const lockNotRefreshed = 'gateway.maintenance_required'

export function describeExit(exit: Observation['exit']): string {
  if (exit?.oom) return 'it ran out of memory (oom)'
  return exit?.code == null ? 'exit code unknown' : `exit code ${exit.code}`
}

type OutputContext = Pick<StepContext, 'db' | 'vault' | 'lease' | 'sandboxes'>

/** The last lines of the gateway's output, which may contain secrets. Reads them also when the step was aborted. */
async function outputOf({ lease, sandboxes }: OutputContext, count: number): Promise<string> {
  const signal = AbortSignal.timeout(outputTimeoutMs)
  const { lines, rest } = await sandboxes.readLog(lease.instance.id, { lines: count }, signal)
  return [...lines, ...(rest ? [rest] : [])].map(({ text }) => text).join('\n')
}

/** The failure of a gateway that ended before it was ready. */
export async function endedDuringStart(context: OutputContext, { exit }: Observation): Promise<Failure> {
  const output = await outputOf(context, progressLines)
  const isRefusedConfiguration = exit?.code === configurationExitCode && !output.includes(lockNotRefreshed)
  return {
    kind: isRefusedConfiguration ? 'failed for good' : 'failed',
    reason: `The gateway ended while it started (${describeExit(exit)})`,
    gatewayOutput: await readLastOutput(context),
  }
}

const lastLines = 10
const lastCharacters = 600

/** The gateway's last output for the owner of the instance, with known secrets masked. */
export async function readLastOutput(context: OutputContext): Promise<string> {
  const { db, vault, lease } = context
  const mask = await createInstanceMask(db, vault, lease.instance)
  return forOwner(mask((await outputOf(context, lastLines)).trim(), false)).slice(-lastCharacters)
}
