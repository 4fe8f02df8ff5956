import { statfs } from 'node:fs/promises'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

const lastsMs = 1000
const megabyte = 1024 * 1024
export const usualFloorMb = 1024
/** A small disk has a small floor. */
const mostOfDisk = 0.1
/** The number of files of one block, the usual 4 KiB, in a megabyte. */
const filesPerMegabyte = 256

interface DiskState {
  freeBytes: number
  /** Below this, only the control plane writes. */
  floorBytes: number
  /** How many more files the disk can hold; null if the file system has no limit. */
  freeFiles: number | null
  isLow: boolean
}

/** The disk of a folder of this host. */
export interface HostDisk {
  /** The current state, at most a second old. */
  read(): Promise<DiskState>
}

/** Watches the disk of a folder, with `floorMb` reserved for the control plane, or a tenth of a small disk. */
export function createHostDisk(folder: string, floorMb: number): HostDisk {
  let latest: { at: number; state: Promise<DiskState> } | undefined
  async function read(): Promise<DiskState> {
    const { bavail, blocks, bsize, files, ffree } = await statfs(folder)
    const freeBytes = bavail * bsize
    const floorBytes = Math.min(floorMb * megabyte, blocks * bsize * mostOfDisk)
    const floorFiles = Math.min(floorMb * filesPerMegabyte, files * mostOfDisk)
    const freeFiles = files > 0 ? ffree : null
    return { freeBytes, floorBytes, freeFiles, isLow: freeBytes < floorBytes || ffree < floorFiles }
  }
  return {
    read() {
      const now = performance.now()
      if (!latest || now - latest.at > lastsMs) latest = { at: now, state: read() }
      return latest.state
    },
  }
}

/** Throws AppError `host_disk_full` while the rest of the disk is reserved for the control plane. */
export async function requireHostRoom(disk: HostDisk): Promise<void> {
  if ((await disk.read()).isLow) throw new AppError('host_disk_full', texts.hostDiskFull)
}
