import type { GatewayConfig } from './config.ts'
import { looksApplied, patchFor } from './config-patch.ts'
import { type GatewayClient, GatewayRefusal } from './gateway.ts'
import { isObject } from './json.ts'

const maxAttempts = 5
const patchTimeoutMs = 60_000

/** The configuration as it stands in the gateway's file, the same with the gateway's defaults, and its version. */
async function readConfig(gateway: GatewayClient) {
  const answer = await gateway.call('config.get')
  if (!isObject(answer) || !isObject(answer.parsed) || typeof answer.hash !== 'string') {
    throw new GatewayRefusal('UNREADABLE', 'the gateway does not show its configuration')
  }
  return { shown: answer.parsed, effective: isObject(answer.config) ? answer.config : {}, hash: answer.hash }
}

/** True when the gateway found nothing to change; undefined when somebody else wrote in between. */
async function sendPatch(gateway: GatewayClient, params: Record<string, unknown>): Promise<boolean | undefined> {
  try {
    const answer = await gateway.call('config.patch', params, { timeoutMs: patchTimeoutMs })
    return isObject(answer) && answer.noop === true
  } catch (error) {
    if (error instanceof GatewayRefusal && error.message.includes('config changed since last load')) return undefined
    throw error
  }
}

/**
 * Makes a running gateway's configuration the wanted one, hot, and makes sure by reading it back. What the gateway holds
 * beyond the wanted is removed, its own keys aside. Done again, it changes nothing.
 * Throws GatewayRefusal with the gateway's own words, nothing having changed; GatewayUnreachable; the signal's reason.
 */
export async function applyConfig(gateway: GatewayClient, wanted: GatewayConfig, signal: AbortSignal): Promise<void> {
  let written = false
  for (let attempt = 0; attempt < maxAttempts; attempt += 1) {
    signal.throwIfAborted()
    const { shown, effective, hash } = await readConfig(gateway)
    if (written && looksApplied(shown, wanted)) return
    const change = patchFor(shown, effective, wanted)
    if (!change) return
    const { patch, replacePaths } = change
    // A patch that changes nothing settles also what cannot be compared: secrets, and values that OpenClaw rewrites.
    const unchanged = await sendPatch(gateway, { raw: JSON.stringify(patch), baseHash: hash, replacePaths })
    if (unchanged === true) return
    written ||= unchanged === false
  }
  throw new GatewayRefusal('NOT_APPLIED', 'the gateway did not take over the configuration: something else changes it')
}
