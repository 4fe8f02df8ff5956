import { setTimeout as sleep } from 'node:timers/promises'
import type { GatewayConfig } from './config.ts'
import { looksApplied, patchFor } from './config-patch.ts'
import { type GatewayClient, GatewayRefusal } from './gateway.ts'
import { isObject } from './json.ts'

const maxAttempts = 5
const patchTimeoutMs = 60_000
const restartBeginsMs = 5000

/** The configuration as it stands in the gateway's file, the same with the gateway's defaults, and its version. */
async function readConfig(gateway: GatewayClient) {
  const answer = await gateway.call('config.get')
  if (!isObject(answer) || !isObject(answer.parsed) || typeof answer.hash !== 'string') {
    throw new GatewayRefusal('UNREADABLE', 'the gateway does not show its configuration')
  }
  return { shown: answer.parsed, effective: isObject(answer.config) ? answer.config : {}, hash: answer.hash }
}

type Outcome = 'nothing to change' | 'changed' | 'changed, restarts' | 'outdated'

async function sendPatch(gateway: GatewayClient, params: Record<string, unknown>): Promise<Outcome> {
  try {
    const answer = await gateway.call('config.patch', params, { timeoutMs: patchTimeoutMs })
    if (isObject(answer) && answer.noop === true) return 'nothing to change'
    return requiresRestart(answer) ? 'changed, restarts' : 'changed'
  } catch (error) {
    if (error instanceof GatewayRefusal && error.message.includes('config changed since last load')) return 'outdated'
    throw error
  }
}

function requiresRestart(answer: unknown): boolean {
  let at = answer
  for (const key of ['sentinel', 'payload', 'stats', 'requiresRestart']) at = isObject(at) ? at[key] : undefined
  return at === true
}

/**
 * Makes a running gateway's configuration the wanted one, hot, and makes sure by reading it back. What the gateway holds
 * beyond the wanted is removed, its own keys aside. Done again, it changes nothing.
 * A few keys (`browser` is one) need a restart, which the gateway does by itself in the same process, in some 5 s and
 * after its open turns: then `restarts` is true, and the restart has begun unless a turn keeps it waiting.
 * Throws GatewayRefusal with the gateway's own words, nothing having changed; GatewayUnreachable; the signal's reason.
 */
export async function applyConfig(
  gateway: GatewayClient,
  wanted: GatewayConfig,
  signal: AbortSignal,
): Promise<{ restarts: boolean }> {
  let outcome: Outcome | undefined
  let restarts = false
  for (let attempt = 0; attempt < maxAttempts; attempt += 1) {
    signal.throwIfAborted()
    const { shown, effective, hash } = await readConfig(gateway)
    const change = patchFor(shown, effective, wanted)
    if (!change || (outcome?.startsWith('changed') && looksApplied(shown, wanted))) {
      if (restarts) await Promise.race([gateway.closed, sleep(restartBeginsMs, undefined, { signal, ref: false })])
      return { restarts }
    }
    const { patch, replacePaths } = change
    outcome = await sendPatch(gateway, { raw: JSON.stringify(patch), baseHash: hash, replacePaths })
    restarts ||= outcome === 'changed, restarts'
    // The gateway's word settles what cannot be compared here: secrets, and values that it writes in another form.
    if (outcome === 'nothing to change') return { restarts }
  }
  throw new GatewayRefusal('NOT_APPLIED', 'the gateway did not take over the configuration: something else changes it')
}
