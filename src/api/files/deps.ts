import type { Db } from '#database/client.ts'
import type { Regions } from '#instances/regions.ts'
import type { HostDisk } from '#platform/host-disk.ts'

export interface FileDeps {
  db: Db
  regions: Regions
  hostDisk: HostDisk
  /** The size of the largest file that may be uploaded, in bytes. */
  filesMaxBytes: number
}
