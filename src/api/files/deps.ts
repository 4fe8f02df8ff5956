import type { Db } from '#database/client.ts'
import type { HostDisk } from '#platform/host-disk.ts'
import type { SandboxAccess } from '#sandbox/driver.ts'

export interface FileDeps {
  db: Db
  sandboxes: SandboxAccess
  hostDisk: HostDisk
  /** The size of the largest file that may be uploaded, in bytes. */
  filesMaxBytes: number
}
