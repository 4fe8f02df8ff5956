import { randomBytes, randomUUID } from 'node:crypto'
import { existsSync, mkdirSync } from 'node:fs'
import {
  access,
  chmod,
  constants,
  copyFile,
  cp,
  link,
  lstat,
  open,
  readdir,
  readFile,
  rename,
  rm,
  stat,
} from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { StartupError } from './startup-error.ts'

const isRoot = process.getuid?.() === 0

/** Folders others must pass through but not list. */
const passableMode = 0o711

const isCode = (error: unknown, ...codes: string[]): boolean =>
  error instanceof Error && 'code' in error && codes.includes(String(error.code))

const exists = (path: string): Promise<boolean> =>
  lstat(path).then(
    () => true,
    (error) => {
      if (isCode(error, 'ENOENT', 'ENOTDIR')) return false
      throw error
    },
  )

/** The folders from the root of the file system down to `path`, itself included. */
function withParents(path: string): string[] {
  const parent = dirname(path)
  return parent === path ? [path] : [...withParents(parent), path]
}

/** Whether others may pass through a folder, or will when it is made; a file in its place is another fault. */
async function isPassable(folder: string): Promise<boolean> {
  try {
    const info = await stat(folder)
    return !info.isDirectory() || (info.mode & 0o001) !== 0
  } catch (error) {
    if (isCode(error, 'ENOENT', 'ENOTDIR')) return true
    throw error
  }
}

async function checkPassable(path: string, setting: string): Promise<void> {
  const closed: string[] = []
  for (const folder of withParents(path)) if (!(await isPassable(folder))) closed.push(folder)
  if (closed.length === 0) return
  throw new StartupError(
    `the data folder ${path} cannot be used: other users, whom the database and the agents run as, cannot pass through ` +
      `${closed.join(' and ')}. Run: chmod o+x ${closed.map((folder) => `'${folder}'`).join(' ')}, or set ` +
      `${setting} to another folder`,
  )
}

/**
 * Makes a folder and its missing parents; as root passable for every user, whatever the umask, else its owner's alone. It has
 * its mode from its first moment on: another process that starts at the same time must not find it closed.
 */
function makeFolder(folder: string): void {
  const mode = isRoot ? passableMode : 0o700
  const umask = process.umask(0o777 & ~mode)
  try {
    makeLevels(folder, mode)
  } finally {
    process.umask(umask)
  }
}

/** One level after another: Node's recursive mkdir goes on for ever where a file system refuses with ENOENT, as /proc does. */
function makeLevels(folder: string, mode: number): void {
  for (const level of withParents(folder)) {
    if (existsSync(level)) continue
    try {
      mkdirSync(level, { mode })
    } catch (error) {
      if (!isCode(error, 'EEXIST')) throw error // another process was quicker
    }
  }
}

/** The absolute path of the data folder: what is configured, else `./data`, as root `/var/lib/chowder`. */
export const dataFolder = (configured: string | undefined): string =>
  resolve(configured ?? (isRoot ? '/var/lib/chowder' : 'data'))

/**
 * Makes the data folder (absolute or relative to the working folder) if it is missing and checks that it can be used.
 * A folder that is already there keeps its mode. As root a new one is passable for every user but not listable, and it
 * and all its parents must be passable, since the database and the agents run as other users; otherwise a new one is
 * its owner's alone. Throws an Error that names the folder at fault, and the setting as the way out.
 */
export async function prepareDataFolder(path: string, setting = 'CHOWDER_DATA_DIR'): Promise<void> {
  const folder = resolve(path)
  try {
    if (isRoot) await checkPassable(folder, setting)
    makeFolder(folder)
    await readdir(folder) // ENOTDIR for a file
    await access(folder, constants.R_OK | constants.W_OK | constants.X_OK)
  } catch (error) {
    if (!isCode(error, 'EACCES', 'EPERM', 'EROFS', 'ENOTDIR', 'ENOENT')) throw error
    const user = process.getuid ? ` by uid ${process.getuid()}` : ''
    const reason = isCode(error, 'ENOTDIR')
      ? 'there is a file in its place'
      : isCode(error, 'ENOENT')
        ? 'its file system lets nobody make it'
        : `it cannot be written${user}`
    throw new StartupError(`the data folder ${folder} cannot be used: ${reason}. Set ${setting} to another folder`, {
      cause: error,
    })
  }
}

const temporarySibling = (target: string): string =>
  join(dirname(target), `.${basename(target)}.${randomBytes(6).toString('hex')}.tmp`)

/**
 * Removes what killed makers of `target`, which exists, left. One that is still at work finds the target in place and is
 * content; what it writes into meanwhile may stay until the next call.
 */
async function removeTemporarySiblings(target: string): Promise<void> {
  const prefix = `.${basename(target)}.`
  for (const name of await readdir(dirname(target))) {
    if (!name.startsWith(prefix) || !/^[0-9a-f]{12}\.tmp/.test(name.slice(prefix.length))) continue
    await rm(join(dirname(target), name), { recursive: true, force: true, maxRetries: 3 }).catch(() => undefined)
  }
}

/**
 * Fills `target` once, by `make(temporary)` beside it and an atomic rename: there is never a half of it, several
 * processes may do it at once (one wins, all return), and what a kill leaves are hidden siblings (the temporary one and
 * any whose name begins with its name) that the next call for the same target removes. Does nothing when the target exists. Missing parents are made.
 */
export async function makeOnce(target: string, make: (temporary: string) => Promise<void>): Promise<void> {
  makeFolder(dirname(target))
  if (!(await exists(target))) {
    const temporary = temporarySibling(target)
    try {
      await make(temporary)
      await rename(temporary, target)
    } catch (error) {
      await rm(temporary, { recursive: true, force: true, maxRetries: 3 }).catch(() => undefined)
      if (!(await exists(target))) throw error
    }
  }
  await removeTemporarySiblings(target)
}

/** Lets every user read `path` and all below it, and run what its owner may run, whatever umask it was installed with. */
async function openToAll(path: string): Promise<void> {
  const info = await lstat(path)
  if (info.isSymbolicLink()) return
  await chmod(path, info.isDirectory() || info.mode & 0o100 ? 0o755 : 0o644)
  if (info.isDirectory()) for (const name of await readdir(path)) await openToAll(join(path, name))
}

export interface CopyOptions {
  /** Which files of a folder are copied, by their path in the source; all by default. */
  filter?: (source: string) => boolean
  /** Completes the copy before anybody can see it. */
  finish?: (copy: string) => Promise<void>
}

/**
 * Copies a file or folder to `target` once, readable and runnable by every user; links inside a folder stay links.
 * Promises what `makeOnce` does.
 */
export async function copyOnce(source: string, target: string, options: CopyOptions = {}): Promise<void> {
  const { filter = () => true, finish } = options
  await makeOnce(target, async (temporary) => {
    // Blocks are shared instead of copied where the file system can.
    if ((await stat(source)).isDirectory()) {
      await cp(source, temporary, { recursive: true, verbatimSymlinks: true, filter, mode: constants.COPYFILE_FICLONE })
    } else {
      await copyFile(source, temporary, constants.COPYFILE_FICLONE)
    }
    await finish?.(temporary)
    await openToAll(temporary)
  })
}

/**
 * A Node binary of this process's version that every user of the machine may run: as root a copy below the data folder
 * (made at the first call), since the folder it was installed in may be closed to others; else this process's own.
 */
export async function nodeBinary(dataDir: string): Promise<string> {
  if (!isRoot) return process.execPath
  const copy = join(resolve(dataDir), 'node', process.version, 'node')
  await copyOnce(process.execPath, copy)
  return copy
}

/**
 * The text of the file at `path` (mode 0600), which holds what `make` returns at the very first call. Of several
 * processes calling at once one makes it and all return the same; a kill leaves the whole file or none.
 */
export async function textMadeOnce(path: string, make: () => string): Promise<string> {
  for (;;) {
    try {
      const text = await readFile(path, 'utf8')
      await removeTemporarySiblings(path)
      return text.trim()
    } catch (error) {
      if (!isCode(error, 'ENOENT')) throw error
    }
    const temporary = temporarySibling(path)
    const file = await open(temporary, 'wx', 0o600)
    try {
      await file.writeFile(`${make()}\n`)
      await file.sync()
      // Unlike a rename, a link never replaces what another process was quicker to make.
      await link(temporary, path)
    } catch (error) {
      // Another process has created the target and removed the temporary file.
      if (!isCode(error, 'EEXIST', 'ENOENT')) throw error
    } finally {
      await file.close()
      await rm(temporary, { force: true })
    }
  }
}

/** The identity of this machine's data folder: a random uuid, made at the first call and the same ever after. */
export const hostId = (dataDir: string): Promise<string> => textMadeOnce(join(resolve(dataDir), 'host-id'), randomUUID)
