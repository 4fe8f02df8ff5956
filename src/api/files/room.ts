import { Readable } from 'node:stream'
import { eq, sql } from 'drizzle-orm'
import { type Instance, instanceUse } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { findLimits } from '#instances/resources.ts'
import { requireHostRoom } from '#platform/host-disk.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'

const megabyte = 1024 * 1024
/** The least that workers count for a file or a folder. */
const blockBytes = 4096
/** Bytes of a stream between two counts. */
const stepBytes = 4 * megabyte

const gigabytes = (bytes: number) => (bytes / 1024 / megabyte).toFixed(2)

/** Takes room for this many more bytes, before they are written. */
type Take = (bytes: number) => Promise<void>

async function* countedContent(content: Buffer | Readable, take: Take): AsyncGenerator<Buffer> {
  let arrived = 0
  for await (const chunk of Buffer.isBuffer(content) ? [content] : content) {
    arrived += chunk.length
    if (arrived >= stepBytes) {
      await take(arrived)
      arrived = 0
    }
    yield chunk
  }
  if (arrived > 0) await take(arrived)
}

/** The files of a sandbox, where each write takes room for its content, and for each folder and file of its path. */
const counted = (files: SandboxFiles, take: Take): SandboxFiles => {
  const takePath = (path: string) => take(path.split('/').length * blockBytes)
  return {
    ...files,
    async write(path, content, options, signal) {
      await takePath(path)
      const source = Readable.from(countedContent(content, take), { objectMode: false })
      await files.write(path, source, options, signal)
    },
    mkdir: (path, signal) => takePath(path).then(() => files.mkdir(path, signal)),
    move: (from, to, options, signal) => takePath(to).then(() => files.move(from, to, options, signal)),
  }
}

/**
 * Calls `use` with the files of an instance. What is written counts at once as its disk use, until a worker measures it.
 * A failed call does not count, but for a crash half-way. A write without room throws AppError `no_space`, and
 * `host_disk_full` while the rest of the host's disk is reserved for the control plane.
 */
export async function withRoom<T>(
  { db, hostDisk, regions }: FileDeps,
  instance: Instance,
  use: (files: SandboxFiles) => Promise<T>,
): Promise<T> {
  const { sandboxes, resources } = regions.of(instance)
  const { diskBytes } = instanceUse
  const ofInstance = eq(instanceUse.instanceId, instance.id)
  let limit: number | undefined
  let taken = 0

  async function take(bytes: number): Promise<void> {
    await requireHostRoom(hostDisk)
    limit ??= (await findLimits(db, instance, resources)).disk_mb * megabyte
    // Without a row there is room: no limit is below the bytes of one call.
    const more = sql`coalesce(${diskBytes}, 0) + ${bytes}::bigint`
    const [row] = await db
      .insert(instanceUse)
      .values({ instanceId: instance.id, diskBytes: bytes })
      .onConflictDoUpdate({
        target: instanceUse.instanceId,
        set: { diskBytes: more },
        setWhere: sql`${more} <= ${limit}::bigint`,
      })
      .returning()
    if (row) {
      taken += bytes
      return
    }
    // A worker measures them again: some may have been deleted.
    const [full] = await db.update(instanceUse).set({ isFull: true }).where(ofInstance).returning()
    throw new AppError('no_space', texts.diskLimitReached(gigabytes(full?.diskBytes ?? 0), gigabytes(limit)))
  }

  try {
    return await use(counted(sandboxes.files(instance.id), take))
  } catch (error) {
    const less = sql`greatest(0, coalesce(${diskBytes}, 0) - ${taken}::bigint)`
    if (taken > 0) await db.update(instanceUse).set({ diskBytes: less }).where(ofInstance)
    throw error
  }
}
