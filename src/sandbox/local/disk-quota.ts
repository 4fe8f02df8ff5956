import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { filesPerMegabyte } from '#platform/host-disk.ts'

const program = join(import.meta.dirname, 'disk-quota.pl')
const timeoutMs = 5000

const run = promisify(execFile)

/**
 * Has the file system of a folder refuse a user more than so many megabytes of its disk, and more than 256 files for
 * each of them; 0 is no limit. Returns whether it does: that is so where it is mounted with quotas of users, under root.
 * A user has one quota for each file system.
 */
export async function setDiskQuota(folder: string, uid: number, megabytes: number): Promise<boolean> {
  const args = [program, uid, megabytes, megabytes * filesPerMegabyte, folder].map(String)
  return run('/usr/bin/perl', args, { env: {}, timeout: timeoutMs }).then(
    () => true,
    () => false,
  )
}
