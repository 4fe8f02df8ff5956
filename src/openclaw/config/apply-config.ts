import { setTimeout as sleep } from 'node:timers/promises'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { isObject } from '#openclaw/json.ts'
import type { GatewayConfig } from './config.ts'
import { type ConfigPatch, isApplied, patchFor } from './config-patch.ts'

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

async function sendPatch(gateway: GatewayClient, { patch, replacePaths }: ConfigPatch, baseHash: string) {
  try {
    const params = { raw: JSON.stringify(patch), baseHash, replacePaths }
    const answer = await gateway.call('config.patch', params, { timeoutMs: patchTimeoutMs })
    const { noop, hash } = isObject(answer) ? answer : {}
    const changed: Outcome = requiresRestart(answer) ? 'changed, restarts' : 'changed'
    return { outcome: noop === true ? ('nothing to change' as const) : changed, hash: String(hash) }
  } catch (error) {
    if (!(error instanceof GatewayRefusal)) throw error
    if (error.message.includes('config changed since last load')) return { outcome: 'outdated' as const }
    const [, from, to] = sizeDrop.exec(error.message) ?? []
    if (from === undefined || to === undefined) throw error
    return { shrinks: { from: Number(from), to: Number(to) } }
  }
}

/**
 * OpenClaw refuses a file with less than half the bytes of the former one. The agent may answer in place of its
 * gateway, so the bytes are limited: the largest configuration has fewer.
 */
const sizeDrop = /size-drop:(\d{1,7})->(\d{1,7})\b/
/** Enough for the largest configuration. */
const maxSteps = 16
/** The size of the setting besides its text, rounded up. */
const paddingMargin = 256

/**
 * Makes a change that OpenClaw refuses because its file would lose more than half of its bytes: fills the file with a
 * meaningless setting, first up to half the bytes, then up to half of these. The last patch is the caller's; it removes
 * the setting. A crash half-way leaves the change and the setting.
 */
async function sendInSteps(
  gateway: GatewayClient,
  { patch, replacePaths }: ConfigPatch,
  baseHash: string,
  { from, to }: { from: number; to: number },
): Promise<Outcome> {
  let hash = baseHash
  let result: Outcome = 'outdated'
  let size = from
  for (let step = 0; step < maxSteps && size / 2 > to; step += 1) {
    size = size / 2 + paddingMargin
    const wizard = { ...(isObject(patch.wizard) && patch.wizard), lastRunCommand: '-'.repeat(size - to) }
    const sent = await sendPatch(gateway, { patch: { ...patch, wizard }, replacePaths }, hash)
    if (sent.outcome === undefined || sent.outcome === 'outdated') return 'outdated'
    if (result !== 'changed, restarts') result = sent.outcome
    hash = sent.hash
  }
  return result
}

function requiresRestart(answer: unknown): boolean {
  let value = answer
  for (const key of ['sentinel', 'payload', 'stats', 'requiresRestart'])
    value = isObject(value) ? value[key] : undefined
  return value === true
}

/**
 * Replaces the configuration of a running gateway, and reads it back to verify it. Removes other keys, except those
 * outside its `changeablePart`, which has the option `keepsProxy`. A repeated call changes nothing. A few keys, such as
 * `browser`, need a restart: the gateway restarts itself in the same process, in about 5 s and after its open turns.
 * Then `restarts` is true, and the restart has begun unless a turn delays it. Throws GatewayRefusal with the gateway's
 * message when it refuses and nothing has changed; GatewayUnreachable; or the signal's reason.
 */
export async function applyConfig(
  gateway: GatewayClient,
  wanted: GatewayConfig,
  signal: AbortSignal,
  options: { keepsProxy?: boolean } = {},
): Promise<{ restarts: boolean }> {
  let outcome: Outcome | undefined
  let restarts = false
  for (let attempt = 0; attempt < maxAttempts; attempt += 1) {
    signal.throwIfAborted()
    const { shown, effective, hash } = await readConfig(gateway)
    const change = patchFor(shown, effective, wanted, options)
    if (!change || (outcome?.startsWith('changed') && isApplied(shown, wanted, options))) {
      if (restarts) await Promise.race([gateway.closed, sleep(restartBeginsMs, undefined, { signal, ref: false })])
      return { restarts }
    }
    const sent = await sendPatch(gateway, change, hash)
    outcome = sent.shrinks ? await sendInSteps(gateway, change, hash, sent.shrinks) : sent.outcome
    restarts ||= outcome === 'changed, restarts'
    // Secrets and values that the gateway normalizes cannot be compared here: its answer decides.
    if (outcome === 'nothing to change') return { restarts }
  }
  throw new GatewayRefusal('NOT_APPLIED', 'the gateway did not apply the configuration: something else changes it')
}
