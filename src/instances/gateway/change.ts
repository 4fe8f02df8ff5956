import { and, eq, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { type EditableColumns, type Lease, takeForChange, withLease } from '#instances/lease.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import type { Regions } from '#instances/regions.ts'
import { getInstance } from '#instances/row.ts'
import { isNotTerminated, isSettled, publicStatus, requireRunning } from '#instances/status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { type GatewayRefusal, GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import type { Mask } from '#platform/mask.ts'
import { poll } from '#platform/poll.ts'
import type { Vault } from '#platform/secrets.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { type UnsealedInstance, unsealInstance } from './configuration.ts'
import { configureGateway } from './configure.ts'
import { isInvalidRequest, toCallerError } from './errors.ts'
import { createInstanceMask } from './secrets.ts'

/** A started change is finished even if its client has left, within this limit. */
const changeTimeoutMs = 90_000
/** How long a change waits while a worker or another change holds the row. */
const waitForRowMs = 10_000
const pauseMs = 200
const connectTimeoutMs = 15_000

export interface ChangeDeps {
  db: Db
  vault: Vault
  queue: InstanceQueue
  regions: Regions
}

/** A change of the settings that configure an instance's gateway. */
export interface ConfigChange {
  /** Returns the changed settings. Throws AppError to refuse. Called again if the row was busy. */
  edit(stored: UnsealedInstance, row: Instance): UnsealedInstance
  /** Columns of the row to store with the change. */
  columns?(row: Instance): Partial<EditableColumns>
  /** Writes to other tables, in the same transaction. */
  store?(tx: Db, row: Instance): Promise<unknown>
  /** Checks a gateway that has applied the change. If this throws, the former configuration is restored there. */
  verify?(gateway: GatewayClient, signal: AbortSignal): Promise<void>
  /** Whether the change of an instance that does not run is stored for its next start, or refused with conflict. */
  whenNotRunning: 'store' | 'refuse'
}

/**
 * Changes the configuration of an instance. If it runs, the change is applied to the gateway and read back before it is
 * stored. If the gateway refuses it, `invalid` has the gateway's message, and nothing has changed. If the instance does
 * not run, the change is stored for the next start, or refused. A crash half-way leaves the row due, and a worker
 * restores the stored configuration. Throws not_found, conflict (another status, or busy for 10 s), invalid,
 * gateway_unreachable, gateway_timeout, no_space, unavailable.
 */
export async function changeConfig(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  change: ConfigChange,
): Promise<Instance> {
  const signal = AbortSignal.timeout(changeTimeoutMs)
  const attempt = () => changeUnlessBusy(deps, organizationId, id, change, signal)
  const changed = await poll(attempt, { pauseMs, timeoutMs: waitForRowMs, signal })
  if (!changed) throw new AppError('resource_busy', texts.isBusy)
  return changed
}

/** Null when the row is busy, or its status changed during the call. */
async function changeUnlessBusy(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  change: ConfigChange,
  signal: AbortSignal,
): Promise<Instance | null> {
  const row = await getInstance(deps.db, organizationId, id)
  if (row.desiredState === 'terminated') throw new AppError('instance_terminated', texts.isTerminated)
  if (publicStatus(row) === 'running') {
    const takenAt = performance.now()
    const taken = await takeForChange(deps.db, organizationId, id)
    return taken && changeRunning(deps, taken, takenAt, change, signal)
  }
  if (change.whenNotRunning === 'refuse') requireRunning(row)
  const stored = await storeForNextStart(deps, row, change)
  if (stored && !isSettled(stored)) deps.queue.enqueue()
  return stored
}

/**
 * Stores a change while the gateway does not run. Raises the generation of a due row: a running start must not settle
 * with the former settings. Null when the instance runs or is terminated by now.
 */
async function storeForNextStart(
  { db, vault }: ChangeDeps,
  row: Instance,
  change: ConfigChange,
): Promise<Instance | null> {
  change.edit(await unsealInstance(db, vault, row), row) // throws to refuse
  return db.transaction(async (tx) => {
    const [stored] = await tx
      .update(instances)
      .set({ ...change.columns?.(row), ...raiseGeneration('changeStored'), changedBy: changedBy() })
      .where(and(eq(instances.id, row.id), isNotTerminated, isNull(instances.readyAt)))
      .returning()
    if (!stored) return null
    await change.store?.(tx, stored)
    return stored
  })
}

async function changeRunning(
  deps: ChangeDeps,
  taken: Instance,
  takenAt: number,
  change: ConfigChange,
  signal: AbortSignal,
): Promise<Instance> {
  let changed = taken
  const released = await withLease(deps.db, taken, takenAt, signal, async (lease) => {
    changed = await applyAndStore(deps, lease, change)
  }).finally(() => {
    // After a failure the row may be due: a worker then restores the stored configuration. It ignores a settled row.
    deps.queue.enqueue()
  })
  return released?.instance ?? changed
}

async function applyAndStore(deps: ChangeDeps, lease: Lease, change: ConfigChange): Promise<Instance> {
  const { db, vault } = deps
  const { generation } = lease.instance
  const stored = await unsealInstance(db, vault, lease.instance)
  // Leaves the row due: the gateway's configuration is unknown until a worker restores the stored one.
  const throwFailure = (error: unknown): never => {
    throw toCallerError(error, lease.signal)
  }
  try {
    await configure(deps, lease, change.edit(stored, lease.instance), change.verify)
  } catch (error) {
    const mask = await createInstanceMask(db, vault, lease.instance)
    const refusal = refusalOf(error, mask) ?? throwFailure(error)
    // The gateway may have applied the new configuration, unless it refused exactly that.
    if (!isConfigRefusal(error)) await configure(deps, lease, stored).catch(throwFailure)
    await lease.settle(generation, { changedBy: changedBy({ type: 'instance.change_refused' }) })
    throw refusal
  }
  const columns = { ...change.columns?.(lease.instance), updatedAt: sql`now()`, changedBy: changedBy() }
  const isStored = await lease.storeChange(generation, columns, async (tx) => change.store?.(tx, lease.instance))
  if (!isStored) throw new AppError('instance_terminated', texts.isTerminated)
  return lease.instance
}

async function configure(
  { regions }: ChangeDeps,
  { instance, signal }: Lease,
  unsealed: UnsealedInstance,
  verify?: ConfigChange['verify'],
): Promise<void> {
  const { relay, sandboxes } = regions.of(instance)
  const { endpoint, paths } = await sandboxes.observe(instance.id, signal)
  if (!endpoint || !paths) throw new GatewayUnreachable('the gateway does not run')
  await configureGateway({ sandboxes, instance, endpoint, paths }, unsealed, {
    relay,
    connectTimeoutMs,
    signal,
    verify: (gateway) => verify?.(gateway, signal),
  })
}

/**
 * Whether the gateway refused the configuration itself, and so still has the former one. Unknown when the refusal says
 * that the configuration was persisted.
 */
const isConfigRefusal = (error: unknown): error is GatewayRefusal =>
  isInvalidRequest(error) && !error.message.includes('persisted')

/** The error for a refused change; null when the gateway's configuration is unknown. */
function refusalOf(error: unknown, mask: Mask): AppError | null {
  if (error instanceof SandboxUnavailableError) return null
  if (error instanceof AppError) return error
  if (!isConfigRefusal(error)) return null
  return new AppError('invalid_openclaw_config', `OpenClaw refused the configuration: ${mask(error.message, true)}`, {
    cause: error,
  })
}
