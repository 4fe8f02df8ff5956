import { setTimeout as sleep } from 'node:timers/promises'
import type { GatewayConfig } from './config.ts'
import { looksApplied, patchFor } from './config-patch.ts'
import type { GatewayClient } from './gateway.ts'
import { GatewayRefusal } from './gateway-errors.ts'
import { isObject } from './json.ts'

const maxAttempts = 5
const patchTimeoutMs = 60_000
const restartBeginsMs = 5000

/** The configuration in the gateway's file, the same with the gateway's defaults, and its version. */
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
  let value = answer
  for (const key of ['sentinel', 'payload', 'stats', 'requiresRestart'])
    value = isObject(value) ? value[key] : undefined
  return value === true
}

/**
 * Replaces the configuration of a running gateway, and reads it back to verify it. Keys that are not wanted are
 * removed, except the gateway's own keys. A repeated call changes nothing. A few keys, such as `browser`, need a
 * restart. The gateway restarts itself in the same process, in about 5 s and after its open turns. Then `restarts` is
 * true, and the restart has begun unless a turn delays it. Throws GatewayRefusal with the gateway's message, in which
 * case nothing has changed; GatewayUnreachable; or the signal's reason.
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
    // Secrets, and values that the gateway writes in another form, cannot be compared here: its answer decides.
    if (outcome === 'nothing to change') return { restarts }
  }
  throw new GatewayRefusal('NOT_APPLIED', 'the gateway did not apply the configuration: something else changes it')
}
