import { setTimeout as sleep } from 'node:timers/promises'
import { and, eq, isNull, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { type EditableColumns, type Lease, takeForChange, withLease } from '#instances/lease.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import { getInstance } from '#instances/row.ts'
import { isNotTerminated, publicStatus } from '#instances/status.ts'
import type { BaseUrls } from '#openclaw/config.ts'
import { type GatewayClient, type GatewayRefusal, GatewayUnreachable } from '#openclaw/gateway.ts'
import { AppError } from '#platform/errors.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import { type SandboxAccess, SandboxUnavailableError } from '#sandbox/driver.ts'
import { type UnsealedInstance, unsealInstance } from './configuration.ts'
import { configureGateway } from './configure.ts'
import { isInvalidRequest, toCallerError } from './errors.ts'

/** A change that has begun is finished even when nobody waits for the answer, but not for ever. */
const changeTimeoutMs = 90_000
/** How long a change waits for a worker, or another change, to let go of the row. */
const waitForRowMs = 10_000
const pauseMs = 200
const connectTimeoutMs = 15_000

export interface ChangeDeps {
  db: Db
  vault: Vault
  queue: InstanceQueue
  baseUrls: BaseUrls
  sandboxes: SandboxAccess
}

/** A change of what an instance's gateway is configured from. */
export interface ConfigChange {
  /** What is stored, changed. Throws AppError to refuse; called anew when the row was busy. */
  edit(stored: UnsealedInstance, row: Instance): UnsealedInstance
  /** Columns of the row that are written along. */
  columns?(row: Instance): Partial<EditableColumns>
  /** Writes what belongs to the change in other tables, in the transaction that settles it. */
  store?(tx: Db, row: Instance): Promise<unknown>
  /** Asks the gateway, which has taken the change over, whether it is well. A throw undoes the change there. */
  verify?(gateway: GatewayClient, signal: AbortSignal): Promise<void>
  /** Whether an instance that does not run gets the change at its next start, or is a conflict. */
  whenNotRunning: 'store' | 'refuse'
}

/**
 * Changes the configuration of an instance. On a running one it is applied to the gateway hot and read back before
 * anything is stored; the gateway's refusal is `invalid` with its own text, and everything stays as it was. On others
 * it is stored for the next start, or refused. A crash half-way leaves the row due, and a worker restores the stored
 * configuration. Throws not_found, conflict (another status, or busy for 10 s), invalid, gateway_unreachable,
 * gateway_timeout, no_space, unavailable.
 */
export async function changeConfig(
  deps: ChangeDeps,
  organizationId: string,
  id: string,
  change: ConfigChange,
): Promise<Instance> {
  const { db, queue } = deps
  const signal = AbortSignal.timeout(changeTimeoutMs)
  for (const deadline = performance.now() + waitForRowMs; performance.now() < deadline; ) {
    const row = await getInstance(db, organizationId, id)
    if (row.desiredState === 'terminated') throw new AppError('conflict', texts.isTerminated)
    if (publicStatus(row) === 'running') {
      const takenAt = performance.now()
      const taken = await takeForChange(db, organizationId, id)
      if (taken) return changeRunning(deps, taken, takenAt, change, signal)
    } else if (change.whenNotRunning === 'refuse') {
      throw new AppError('conflict', texts.notRunning(publicStatus(row)))
    } else {
      const stored = await storeForNextStart(deps, row, change)
      if (stored) {
        if (stored.generation !== stored.observedGeneration) queue.enqueue(stored)
        return stored
      }
    }
    await sleep(pauseMs, undefined, { signal })
  }
  throw new AppError('conflict', texts.isBusy)
}

/**
 * Stores a change while the gateway does not run. A start that is under way must not settle with the old one, so a due
 * row's generation is raised, and a start has all its attempts again; a settled one stays settled. Null when the instance
 * runs meanwhile, or is terminated.
 */
async function storeForNextStart(
  { db, vault }: ChangeDeps,
  row: Instance,
  change: ConfigChange,
): Promise<Instance | null> {
  change.edit(await unsealInstance(db, vault, row), row)
  return db.transaction(async (tx) => {
    const [stored] = await tx
      .update(instances)
      .set({
        ...change.columns?.(row),
        ...raiseGeneration('changeStored'),
        changedBy: changedBy(),
      })
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
  const after = await withLease(deps.db, taken, takenAt, signal, async (lease) => {
    changed = await applyAndStore(deps, lease, change)
  }).finally(() => deps.queue.enqueue(taken)) // a worker restores what an unknown outcome left; at rest it finds nothing due
  return after?.instance ?? changed
}

async function applyAndStore(deps: ChangeDeps, lease: Lease, change: ConfigChange): Promise<Instance> {
  const { db, vault } = deps
  const { generation } = lease.instance
  const stored = await unsealInstance(db, vault, lease.instance)
  const answerFailure = (error: unknown): never => {
    throw toCallerError(error, lease.signal)
  }
  try {
    await configure(deps, lease, change.edit(stored, lease.instance), change.verify)
  } catch (error) {
    const refusal = refusalOf(error) ?? answerFailure(error)
    // The gateway may have taken the new configuration over, unless that is what it refused.
    if (!isConfigRefusal(error)) await configure(deps, lease, stored).catch(answerFailure)
    await lease.settle(generation, { changedBy: changedBy({ type: 'instance.change_refused' }) })
    throw refusal
  }
  const columns = { ...change.columns?.(lease.instance), updatedAt: sql`now()`, changedBy: changedBy() }
  const also = async (tx: Db) => change.store?.(tx, lease.instance)
  if (await lease.store(generation, columns, also)) return lease.instance
  throw new AppError('conflict', texts.isTerminated)
}

async function configure(
  { baseUrls, sandboxes }: ChangeDeps,
  { instance, signal }: Lease,
  unsealed: UnsealedInstance,
  verify?: ConfigChange['verify'],
): Promise<void> {
  const { endpoint, paths } = await sandboxes.observe(instance.id, signal)
  if (!endpoint || !paths) throw new GatewayUnreachable('the gateway does not run')
  await configureGateway({ sandboxes, instance, endpoint, port: paths.port }, unsealed, {
    baseUrls,
    connectTimeoutMs,
    signal,
    verify: (gateway) => verify?.(gateway, signal),
  })
}

/**
 * Whether the gateway refused the configuration itself, so that it still has the old one. A refusal that says that the
 * configuration was persisted leaves open which one it has.
 */
const isConfigRefusal = (error: unknown): error is GatewayRefusal =>
  isInvalidRequest(error) && !error.message.includes('persisted')

/** The error for a change that was refused; null when it is unknown which configuration the gateway has. */
function refusalOf(error: unknown): AppError | null {
  if (error instanceof SandboxUnavailableError) return null
  if (error instanceof AppError) return error
  if (!isConfigRefusal(error)) return null
  return new AppError('invalid', `OpenClaw refused the configuration: ${error.message}`, { cause: error })
}
