import { freemem } from 'node:os'
import { and, eq, ne } from 'drizzle-orm'
import { type Isolation, instances } from '#database/schema.ts'
import { newToken } from '#instances/gateway/tokens.ts'
import { terminateInstance } from '#instances/intent.ts'
import { readRegionState } from '#instances/region-states.ts'
import { isIn } from '#instances/regions.ts'
import { sealToken } from '#instances/row.ts'
import { isDue } from '#instances/status.ts'
import {
  insertWarmInstance,
  kindOfLatest,
  listWarmInstances,
  poolOrganizationId,
  type WarmInstance,
} from '#instances/warm-pool.ts'
import type { LifecycleDeps } from '#lifecycle/attempt/reconcile.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { newId } from '#platform/ids.ts'
import type { PeriodicTask } from '#platform/periodic.ts'

const everyMs = 2000
const timeoutMs = 60_000
const megabyte = 1024 * 1024

/**
 * How many warm instances a region is to have. With `auto` one; where agents are processes of this host, only while it
 * has twice the memory that an agent may use, and the one that is ready is kept while there is once that memory.
 */
function targetOf({ warmPool, sandboxes, resources }: LifecycleDeps, isReady: boolean, freeBytes: number): number {
  if (warmPool !== 'auto') return warmPool
  if (sandboxes.name !== 'local') return 1
  const needed = resources.defaults.memory_mb * megabyte * (isReady ? 1 : 2)
  return freeBytes >= needed ? 1 : 0
}

/** The instances that the pool does not keep: of another kind, failed ten minutes ago, or more than `target`. */
function surplusOf(warm: readonly WarmInstance[], isolation: Isolation | undefined, target: number): WarmInstance[] {
  const isUsable = (row: WarmInstance) =>
    row.openclawVersion === defaultRelease && row.isolation === isolation && !(row.state === 'failed' && row.isOld)
  const usable = warm.filter(isUsable)
  return [...warm.filter((row) => !isUsable(row)), ...usable.slice(target)]
}

/**
 * The periodic task that keeps the warm pool of a region: begins one warm instance at a time, and none while another
 * instance of the region waits for a worker. A region has no pool before its first instance, and while it is closed.
 */
export const warmPoolTask = (deps: LifecycleDeps, isFirst: () => boolean, freeBytes = freemem): PeriodicTask => ({
  name: 'fill_warm_pool',
  everyMs,
  timeoutMs,
  async run(signal) {
    if (!isFirst()) return
    const { db, vault, queue, sandboxes, region, log } = deps
    const isHere = isIn(deps)
    const warm = await listWarmInstances(db, isHere)
    const latest = (await readRegionState(db, region)) === 'open' ? await kindOfLatest(db, isHere) : null
    const isReady = warm.some(({ state }) => state === 'ready')
    const target = latest ? targetOf(deps, isReady, freeBytes()) : 0
    const surplus = surplusOf(warm, latest?.isolation, target)
    for (const { id } of surplus) {
      signal.throwIfAborted()
      await terminateInstance(db, poolOrganizationId, id)
    }
    if (surplus.length > 0) queue.enqueue()
    const isStarting = warm.some(({ state }) => state === 'starting')
    if (!latest || warm.length - surplus.length >= target || isStarting) return
    const isWaiting = and(
      isHere,
      isDue,
      ne(instances.organizationId, poolOrganizationId),
      eq(instances.desiredState, 'running'),
    )
    if ((await db.$count(instances, isWaiting)) > 0) return
    const id = newId()
    const sealedToken = sealToken(vault, id, newToken())
    await insertWarmInstance(db, {
      ...latest,
      id,
      sealedToken,
      openclawVersion: defaultRelease,
      sandboxDriver: sandboxes.name,
    })
    queue.enqueue()
    log.debug('began a warm instance')
  },
})
