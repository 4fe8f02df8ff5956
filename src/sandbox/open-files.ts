import { readFileSync } from 'node:fs'

/** Of one process. */
export const mostOpenFiles = 16_384
/** What programs are used to. */
const least = 1024
/** Of the files that a host can have open, those that one agent may. */
const share = 4

/** How many files all processes of this host together, except root's, can have open. */
const openFilesOfHost = (): number => Number(readFileSync('/proc/sys/fs/file-max', 'utf8'))

/**
 * How many files each process of a sandbox may open. A process that opens one more than the host has room for fails,
 * whoever's it is: so all processes of one sandbox together have a part of that room.
 */
export const openFilesOf = (pids: number, ofHost = openFilesOfHost()): number =>
  Math.max(least, Math.min(mostOpenFiles, Math.floor(ofHost / share / pids)))
