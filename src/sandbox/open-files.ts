import { readFileSync } from 'node:fs'

/** Lower bound for one process. */
export const mostOpenFiles = 16_384
/** Upper bound for one process: what programs are used to. */
const least = 1024
/** The share of the host's open files for one agent. */
const share = 4

/** Maximum open files of all processes of this host together, except root's. */
const openFilesOfHost = (): number => Number(readFileSync('/proc/sys/fs/file-max', 'utf8'))

/**
 * Maximum open files of each process of a sandbox. When the host's limit is reached, any process that opens a file
 * fails, so all processes of one sandbox together get a part of it.
 */
export const openFilesOf = (pids: number, ofHost = openFilesOfHost()): number =>
  Math.max(least, Math.min(mostOpenFiles, Math.floor(ofHost / share / pids)))
