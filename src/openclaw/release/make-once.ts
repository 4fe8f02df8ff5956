import { chmod, mkdir, readdir, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { InstallError } from '#errors/install-error.ts'
import { poll } from '#platform/poll.ts'
import type { Progress } from '#sandbox/driver.ts'
import { runProgram } from './run-program.ts'

const lockPollMs = 500
const sqliteBusy = 5

export interface FolderToMake {
  folder: string
  /** Messages have the form `<title> is <done>`. */
  title: string
  done: 'installed' | 'made'
  timeoutMs: number
  /** Fills a new, empty folder, which is then renamed to `folder`. */
  fill(folder: string, signal: AbortSignal): Promise<void>
  progress: Progress
  signal: AbortSignal
}

/** Whether a file or folder exists at the path. */
export const exists = (path: string) =>
  stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false
      throw error
    },
  )

function tryLock(path: string): Disposable | null {
  const database = new DatabaseSync(path, { timeout: 0 })
  try {
    database.exec('BEGIN EXCLUSIVE')
    return { [Symbol.dispose]: () => database.close() }
  } catch (error) {
    database.close()
    if ((error as { errcode?: number }).errcode === sqliteBusy) return null
    throw error
  }
}

/**
 * Holds a lock across processes until it is disposed of. The lock is SQLite's, because the operating system releases it
 * when its holder dies for any reason.
 */
async function lock(path: string, onWait: () => void, timeoutMs: number, signal: AbortSignal): Promise<Disposable> {
  const free = tryLock(path)
  if (free) return free
  onWait()
  const held = await poll(() => tryLock(path), { pauseMs: lockPollMs, timeoutMs, signal })
  if (!held) throw new Error(`another process held the lock ${path} for too long`)
  return held
}

/** Removes a folder that may be read-only. */
async function discard(folder: string): Promise<void> {
  // `rm` reports the failure.
  await runProgram('chmod', ['-R', 'u+w', folder], AbortSignal.timeout(60_000)).catch(() => {})
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

/**
 * Makes a folder on this host unless it exists; returns its path. Of several processes, one makes it and the others
 * wait. Every user can read it, and no user can write it. A crash half-way leaves a folder of another name, which is
 * never used and which the next call removes. Throws InstallError when `fill` fails or the time is over, or the
 * signal's reason.
 */
export async function makeFolderOnce(wanted: FolderToMake): Promise<string> {
  const { folder, title, done, timeoutMs, progress } = wanted
  if (await exists(folder)) return folder
  const signal = AbortSignal.any([wanted.signal, AbortSignal.timeout(timeoutMs)])
  const parent = dirname(folder)
  const prefix = `${basename(folder)}.installing-`
  await mkdir(parent, { recursive: true })
  await chmod(parent, 0o755) // despite the umask, because agents read it as other users

  const onWait = () => progress(`${title} is already being ${done}: waiting for it`)
  using _ = await lock(`${folder}.lock`, onWait, timeoutMs, signal)
  if (await exists(folder)) return folder
  for (const name of await readdir(parent)) if (name.startsWith(prefix)) await discard(join(parent, name))
  // The name is unique: a child of a killed process may still write to that process's folder.
  const temporary = join(parent, `${prefix}${process.pid}-${Date.now()}`)
  try {
    await mkdir(temporary)
    await wanted.fill(temporary, signal)
    await runProgram('chmod', ['-R', 'a-w,a+rX', temporary], signal)
    // After a power cut, the folder's name must not exist without its content.
    await runProgram('sync', ['-f', temporary], signal).catch(() => signal.throwIfAborted())
    await rename(temporary, folder)
  } catch (cause) {
    await discard(temporary)
    wanted.signal.throwIfAborted()
    const tooLong = signal.aborted ? `it took longer than ${timeoutMs / 60_000} minutes` : undefined
    throw new InstallError(`${title} could not be ${done}`, (cause as Error).message, tooLong)
  }
  progress(`${title} is ${done}`)
  return folder
}
