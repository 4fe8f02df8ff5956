import { eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances, instanceUse } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { getInstance } from '#instances/row.ts'
import { requireHostRoom } from '#platform/host-disk.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'
import { withFiles } from './workspace.ts'

const megabyte = 1024 * 1024

const gigabytes = (bytes: number) => (bytes / 1024 / megabyte).toFixed(2)

/** Throws AppError `no_space` when an instance has no room for this many more bytes. */
async function requireRoom(db: Db, id: string, bytes: number): Promise<void> {
  const [found] = await db
    .select({ limits: instances.limits, used: instanceUse.diskBytes })
    .from(instances)
    .leftJoin(instanceUse, eq(instanceUse.instanceId, instances.id))
    .where(eq(instances.id, id))
  const limit = (found?.limits?.asked.disk_mb ?? Number.POSITIVE_INFINITY) * megabyte
  const used = found?.used ?? 0
  if (used + bytes <= limit) return
  // A worker measures them again: some may have been deleted.
  await db.update(instanceUse).set({ isFull: true }).where(eq(instanceUse.instanceId, id))
  throw new AppError('no_space', texts.diskLimitReached(gigabytes(used), gigabytes(limit)))
}

/** Adds written bytes to the stored size until a worker measures the files again. */
const countWritten = (db: Db, instanceId: string, bytes: number) =>
  db
    .insert(instanceUse)
    .values({ instanceId, diskBytes: bytes })
    .onConflictDoUpdate({
      target: instanceUse.instanceId,
      set: { diskBytes: sql`coalesce(${instanceUse.diskBytes}, 0) + ${bytes}` },
    })

/**
 * Like `withFiles`, for a call that writes this many bytes. Also throws AppError `no_space`, and `host_disk_full` while
 * the rest of the host's disk is reserved for the control plane.
 */
export async function withFilesToWrite<T>(
  deps: FileDeps,
  organizationId: string,
  instanceId: string,
  bytes: number,
  use: (files: SandboxFiles) => Promise<T>,
): Promise<T> {
  const { id } = await getInstance(deps.db, organizationId, instanceId)
  await requireHostRoom(deps.hostDisk)
  await requireRoom(deps.db, id, bytes)
  const result = await withFiles(deps, organizationId, id, use)
  if (bytes > 0) await countWritten(deps.db, id, bytes)
  return result
}
