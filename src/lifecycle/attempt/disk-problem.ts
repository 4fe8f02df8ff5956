import { eq } from 'drizzle-orm'
import { instanceUse } from '#database/schema.ts'
import { texts } from '#errors/texts.ts'
import { findLimits } from '#instances/resources.ts'
import { again, failedForGood, type StepContext, type StepOutcome } from './step.ts'

const hostPauseSeconds = 30
const megabyte = 1024 * 1024
const gigabytes = (bytes: number) => (bytes / 1024 / megabyte).toFixed(1)

/**
 * The reason why an agent cannot start now: it has reached its disk limit, or its host has almost no room. Null if
 * neither.
 */
export async function findDiskProblem(context: StepContext): Promise<StepOutcome | null> {
  const { db, sandboxes, lease, resources, hostDisk, signal } = context
  const { instance } = lease
  if ((await hostDisk.read()).isLow) return again(hostPauseSeconds, texts.hostDiskFull)
  const ofInstance = eq(instanceUse.instanceId, instance.id)
  const [known] = await db.select({ bytes: instanceUse.diskBytes }).from(instanceUse).where(ofInstance)
  const limit = (await findLimits(db, instance, resources)).disk_mb * megabyte
  if ((known?.bytes ?? 0) < limit) return null
  // The stored size may be stale: measure again.
  const bytes = (await sandboxes.diskUse([instance.id], signal)).get(instance.id) ?? 0
  await db.update(instanceUse).set({ diskBytes: bytes }).where(ofInstance)
  return bytes < limit ? null : failedForGood(texts.diskLimitReached(gigabytes(bytes), gigabytes(limit)))
}
