import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '../database/client.ts'
import type { Instance } from '../database/schema.ts'
import { applyConfig } from '../openclaw/apply-config.ts'
import { type BaseUrls, renderConfig } from '../openclaw/config.ts'
import { connectGateway, type Endpoint, GatewayRefusal, GatewayUnreachable, probeHealth } from '../openclaw/gateway.ts'
import { parseOverrides } from '../openclaw/overrides.ts'
import { type SandboxAccess, writeSystemPrompt } from '../openclaw/system-prompt.ts'
import type { Bell } from '../platform/bell.ts'
import { AppError } from '../platform/errors.ts'
import type { Vault } from '../platform/secrets.ts'
import { texts } from '../platform/texts.ts'
import { SandboxCapacityError, SandboxPathError } from '../sandbox/driver.ts'
import { type Lease, takeForChange, withLease } from './lease.ts'
import { publicStatus } from './status.ts'
import { getInstance, openInstance, renameInstance, sealedConfigFor, storeConfigAtRest } from './store.ts'

/** A change that has begun is finished even when nobody waits for the answer, but not for ever. */
const changeTimeoutMs = 90_000
/** How long a change waits for a worker, or another change, to let go of the row. */
const waitForRowMs = 10_000
const pauseMs = 200
const connectTimeoutMs = 15_000
const restartTimeoutMs = 30_000
const probeTimeoutMs = 2000

export interface PatchDeps {
  db: Db
  vault: Vault
  bell: Bell
  baseUrls: BaseUrls
  /** To read where a running sandbox's gateway listens, and to write the system prompt. */
  sandboxes: SandboxAccess
}

export interface Patch {
  name?: string
  openclaw_config?: Record<string, unknown> | null
}

/**
 * Renames an instance and replaces its configuration overrides. On a running instance the new configuration is applied
 * to the gateway and read back before anything is stored; the gateway's refusal is `invalid` with its own text, and
 * everything stays as it was. On others it is stored for the next start. A crash half-way leaves the row due, and a
 * worker restores the stored configuration.
 */
export async function patchInstance(
  deps: PatchDeps,
  organizationId: string,
  id: string,
  patch: Patch,
): Promise<Instance> {
  const { db, vault, bell } = deps
  const { name, openclaw_config: config } = patch
  let row = await getInstance(db, organizationId, id)
  if (config) parseOverrides(config) // refuses bad ones before anything changes
  if (config === undefined) return name === undefined ? row : renameInstance(db, organizationId, id, name)

  const signal = AbortSignal.timeout(changeTimeoutMs)
  const deadline = performance.now() + waitForRowMs
  for (; performance.now() < deadline; row = await getInstance(db, organizationId, id)) {
    if (row.desiredState === 'terminated') throw new AppError('conflict', texts.isTerminated)
    if (publicStatus(row) === 'running') {
      const taken = await takeForChange(db, organizationId, id)
      if (taken) return changeRunning(deps, taken, { name, config }, signal)
    } else {
      const fields = { ...(name !== undefined && { name }), ...sealedConfigFor(vault, row, config) }
      const stored = await storeConfigAtRest(db, row, fields)
      if (stored) {
        if (stored.generation !== stored.observedGeneration) bell.ring(stored)
        return stored
      }
    }
    await sleep(pauseMs, undefined, { signal })
  }
  throw new AppError('conflict', texts.isBusy)
}

type Change = { name: string | undefined; config: Record<string, unknown> | null }

async function changeRunning(deps: PatchDeps, taken: Instance, change: Change, signal: AbortSignal): Promise<Instance> {
  let changed = taken
  const after = await withLease(deps.db, taken, signal, async (lease) => {
    changed = await applyAndStore(deps, lease, change)
  }).finally(() => deps.bell.ring(taken)) // a worker restores what an unknown outcome left; at rest it finds nothing due
  return after?.instance ?? changed
}

async function applyAndStore(deps: PatchDeps, lease: Lease, { name, config }: Change): Promise<Instance> {
  const { vault, sandboxes } = deps
  const { instance } = lease
  const { generation } = instance
  try {
    const systemPrompt = await applyToGateway(deps, lease, config)
    await writeSystemPrompt(sandboxes.files(instance.id), systemPrompt, lease.signal)
  } catch (error) {
    if (!isConfigRefusal(error)) throw asAnswer(error, lease)
    await lease.settle(generation, {})
    throw new AppError('invalid', `OpenClaw refused the configuration: ${error.message}`, { cause: error })
  }
  const fields = { ...(name !== undefined && { name }), ...sealedConfigFor(vault, instance, config) }
  if (await lease.store(generation, fields)) return lease.instance
  throw new AppError('conflict', texts.isTerminated)
}

async function applyToGateway(
  { db, vault, baseUrls, sandboxes }: PatchDeps,
  { instance, signal }: Lease,
  config: Record<string, unknown> | null,
): Promise<string | null> {
  const { token, providerKey } = await openInstance(db, vault, instance)
  const { endpoint, inside } = await sandboxes.observe(instance.id, signal)
  if (!endpoint || !inside) throw new AppError('gateway_unreachable', texts.gatewayUnavailable)
  const { tree, systemPrompt } = parseOverrides(config ?? {})
  const wanted = renderConfig({
    release: instance.openclawVersion,
    provider: instance.modelProvider,
    providerKey,
    baseUrl: baseUrls[instance.modelProvider],
    token,
    port: inside.port,
    overrides: tree,
  })
  const gateway = await connectGateway(endpoint, token, { signal, timeoutMs: connectTimeoutMs })
  try {
    const { restarts } = await applyConfig(gateway, wanted, signal)
    if (restarts) await waitForRestart(endpoint, signal)
  } finally {
    gateway.close()
  }
  return systemPrompt
}

/** Some keys make the gateway start anew by itself, 5 to 9 s: the answer waits, so that the next message finds it up. */
async function waitForRestart(endpoint: Endpoint, signal: AbortSignal): Promise<void> {
  for (const deadline = performance.now() + restartTimeoutMs; performance.now() < deadline; ) {
    if (await probeHealth(endpoint, '/startupz', { timeoutMs: probeTimeoutMs, signal })) return
    await sleep(pauseMs, undefined, { signal })
  }
  throw new GatewayUnreachable('the gateway did not come back from its restart', { outcomeUnknown: true })
}

/** The gateway's verdict on the configuration itself: nothing has changed. Its other refusals say nothing of that. */
const isConfigRefusal = (error: unknown): error is GatewayRefusal =>
  error instanceof GatewayRefusal && error.code === 'INVALID_REQUEST' && !error.message.includes('persisted')

/** Any other failure: what the gateway has is unknown until a worker has looked, so the row is left due. */
function asAnswer(error: unknown, { signal }: Lease): unknown {
  const { gatewayUnavailable } = texts
  if (error instanceof SandboxPathError) return new AppError('invalid', error.message, { cause: error })
  if (error instanceof SandboxCapacityError) return new AppError('no_space', error.message, { cause: error })
  if (error instanceof GatewayUnreachable && !error.outcomeUnknown) {
    return new AppError('gateway_unreachable', gatewayUnavailable, { cause: error })
  }
  if (error instanceof GatewayRefusal) return new AppError('gateway_unreachable', gatewayUnavailable, { cause: error })
  if (error instanceof GatewayUnreachable || signal.aborted) {
    return new AppError('gateway_timeout', gatewayUnavailable, { cause: error })
  }
  return error
}
