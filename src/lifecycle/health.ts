import { setTimeout as sleep } from 'node:timers/promises'
import { unsealInstance } from '#instances/gateway/configuration.ts'
import { probeHealth } from '#openclaw/health.ts'
import type { Observation } from '#sandbox/driver.ts'
import { StepFailure, Uncounted } from './failures.ts'
import type { StepContext } from './step.ts'

const pollMs = 100
const probeTimeoutMs = 2000
const progressLines = 20

export const isAnswering = async (
  { signal }: StepContext,
  { endpoint }: Observation,
  path: '/healthz' | '/startupz' = '/healthz',
) => endpoint !== null && probeHealth(endpoint, path, { timeoutMs: probeTimeoutMs, signal })

/**
 * Waits until a gateway that starts is ready. Throws StepFailure when it ended, with its last words, and when its time
 * is over: it is stopped then. Not `/readyz`: that one is no as long as any chat channel fails, and a wrong bot
 * token is no reason to end an agent.
 */
export async function waitUntilReady(context: StepContext): Promise<void> {
  const { lease, sandboxes, timeouts, signal } = context
  const { id } = lease.instance
  const startedAt = performance.now()
  let progressAt = startedAt
  let output = ''
  for (let round = 0; ; round += 1) {
    const seen = await sandboxes.observe(id, signal)
    if (seen.state !== 'running') throw await endedEarly(context, seen)
    if (await isAnswering(context, seen, '/startupz')) return
    if (round % 10 === 0) {
      const latest = await sandboxes.logs(id, progressLines)
      if (latest !== output) progressAt = performance.now()
      output = latest
    }
    const now = performance.now()
    if (now - progressAt > timeouts.startWithoutProgressMs || now - startedAt > timeouts.startMs) {
      // The next attempt starts it anew: one that hangs would go on hanging.
      await sandboxes.stop(id, { graceMs: timeouts.graceMs }, signal)
      throw new StepFailure(`The gateway was not ready after ${Math.round((now - startedAt) / 1000)} s.`)
    }
    await sleep(pollMs, undefined, { signal })
  }
}

/** OpenClaw's own code for a configuration that it cannot start with; the driver saw to it that the folder was free. */
const configurationExit = 78
/** The same code has another reason on a host that is too busy: its lock on its state was not refreshed in time. */
const tooBusy = 'gateway.maintenance_required'

/** How a gateway ended, in words for its owner. */
export function howItEnded(exit: Observation['exit']): string {
  if (exit?.oom) return 'it ran out of memory (oom)'
  return exit?.code == null ? 'it was ended' : `exit code ${exit.code}`
}

/** A gateway that is not there any more before it was seen to last, with its last words. */
export async function endedEarly(context: StepContext, { exit }: Observation): Promise<StepFailure> {
  const words = await context.sandboxes.logs(context.lease.instance.id, progressLines)
  return new StepFailure(`The gateway ended while it started (${howItEnded(exit)})`, {
    final: exit?.code === configurationExit && !words.includes(tooBusy),
    quote: await lastWords(context),
  })
}

const quotedLines = 6
const quotedCharacters = 600

/** What the gateway said last, without the secrets that it was given. */
export async function lastWords({
  db,
  vault,
  lease,
  sandboxes,
}: Pick<StepContext, 'db' | 'vault' | 'lease' | 'sandboxes'>): Promise<string> {
  const { token, providerKey } = await unsealInstance(db, vault, lease.instance)
  let words = (await sandboxes.logs(lease.instance.id, quotedLines)).trim()
  for (const secret of [token, providerKey]) if (secret) words = words.replaceAll(secret, '***')
  return words.slice(-quotedCharacters)
}

const insideTimeoutMs = 5000
/** Between looks at an agent that cannot be reached: as soon as it can be, it is used again. */
const unreachablePauseSeconds = 10

/**
 * Asks the gateway, from here and from inside its sandbox, until it answers here or the patience for it is over. Throws
 * Uncounted when it answers inside alone: what keeps us from an agent that is fine is no failure of its own.
 */
export async function isHung(context: StepContext): Promise<boolean> {
  const { lease, sandboxes, timeouts, signal } = context
  const { id } = lease.instance
  const deadline = performance.now() + timeouts.hungMs
  while (performance.now() < deadline) {
    const seen = await sandboxes.observe(id, signal)
    if (seen.state === 'stopped') return true
    if (await isAnswering(context, seen)) return false
    const { node, port } = seen.paths ?? { node: 'node', port: 0 }
    const ask = `fetch('http://127.0.0.1:${port}/healthz',{signal:AbortSignal.timeout(${insideTimeoutMs})}).then((a)=>process.exit(a.ok?0:1),()=>process.exit(1))`
    const { exitCode } = await sandboxes.exec(id, [node, '-e', ask], { timeoutMs: 2 * insideTimeoutMs }, signal)
    if (exitCode === 0) {
      // It may only be slow: it gets as long here as it got there.
      if (seen.endpoint && (await probeHealth(seen.endpoint, '/healthz', { timeoutMs: insideTimeoutMs, signal })))
        return false
      throw new Uncounted('The gateway runs, but Chowder cannot reach it.', unreachablePauseSeconds)
    }
    await sleep(1000, undefined, { signal })
  }
  return true
}
