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
import { StartupError } from '#errors/startup-error.ts'

const isRoot = process.getuid?.() === 0

/** Folders that others must traverse but not list. */
const passableMode = 0o711

export const isCode = (error: unknown, ...codes: string[]): boolean =>
  error instanceof Error && 'code' in error && codes.includes(String(error.code))

const exists = (path: string): Promise<boolean> =>
  lstat(path).then(
    () => true,
    (error) => {
      if (isCode(error, 'ENOENT', 'ENOTDIR')) return false
      throw error
    },
  )

/** The folders from the root of the file system down to `path`, inclusive. */
function withParents(path: string): string[] {
  const parent = dirname(path)
  return parent === path ? [path] : [...withParents(parent), path]
}

/** Whether others can traverse a folder, or will when it is created; a file in its place is another fault. */
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
 * Creates a folder and its missing parents. As root, every user may traverse it, whatever the umask; otherwise it is
 * its owner's alone. It has its mode from the first moment on, so that another process that starts at the same time
 * does not find it closed.
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

/** One level after another: Node's recursive mkdir never ends if a file system refuses with ENOENT, as /proc does. */
function makeLevels(folder: string, mode: number): void {
  for (const level of withParents(folder)) {
    if (existsSync(level)) continue
    try {
      mkdirSync(level, { mode })
    } catch (error) {
      if (!isCode(error, 'EEXIST')) throw error // another process was faster
    }
  }
}

/** The absolute path of the data folder: the configured one, otherwise `./data`, as root `/var/lib/chowder`. */
export const dataFolder = (configured: string | undefined): string =>
  resolve(configured ?? (isRoot ? '/var/lib/chowder' : 'data'))

/**
 * Creates the data folder (absolute or relative to the working folder) if it is missing, and checks that it can be
 * used. An existing folder keeps its mode. As root every user may traverse a new one but not list it, and also all its
 * parents, because the database and the agents run as other users; otherwise a new one is its owner's alone. Throws an
 * Error that names the wrong folder, and the setting as the way out.
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
 * Removes the leftovers of killed makers of `target`, which exists. A running maker finds the target in place and
 * returns; its temporary files may stay until the next call.
 */
async function removeTemporarySiblings(target: string): Promise<void> {
  const prefix = `.${basename(target)}.`
  for (const name of await readdir(dirname(target))) {
    if (!name.startsWith(prefix) || !/^[0-9a-f]{12}\.tmp/.test(name.slice(prefix.length))) continue
    await rm(join(dirname(target), name), { recursive: true, force: true, maxRetries: 3 }).catch(() => undefined)
  }
}

/**
 * Fills `target` once, by `make(temporary)` beside it and an atomic rename: it is never half-made, several processes
 * may do it at once (one wins, all return), and a kill leaves hidden siblings (the temporary one and any whose name
 * begins with its name) that the next call for the same target removes. Does nothing if the target exists. Creates
 * missing parents.
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

/**
 * Makes `path` and all below it readable for every user, and executable if its owner may execute it, whatever the umask
 * of the install.
 */
async function openToAll(path: string): Promise<void> {
  const info = await lstat(path)
  if (info.isSymbolicLink()) return
  await chmod(path, info.isDirectory() || info.mode & 0o100 ? 0o755 : 0o644)
  if (info.isDirectory()) for (const name of await readdir(path)) await openToAll(join(path, name))
}

export interface CopyOptions {
  /** Selects the copied files of a folder, by their path in the source; all by default. */
  filter?: (source: string) => boolean
  /** Completes the copy before other processes can see it. */
  finish?: (copy: string) => Promise<void>
}

/**
 * Copies a file or folder to `target` once, readable and executable by every user; links inside a folder stay links.
 * Has the guarantees of `makeOnce`.
 */
export async function copyOnce(source: string, target: string, options: CopyOptions = {}): Promise<void> {
  const { filter = () => true, finish } = options
  await makeOnce(target, async (temporary) => {
    // Blocks are shared instead of copied if the file system can.
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
 * (created at the first call), because its installation folder may be closed to others; otherwise this process's own.
 */
export async function nodeBinary(dataDir: string): Promise<string> {
  if (!isRoot) return process.execPath
  const copy = join(resolve(dataDir), 'node', process.version, 'node')
  await copyOnce(process.execPath, copy)
  return copy
}

/**
 * The text of the file at `path` (mode 0600), created from `make` at the first call. Of several concurrent processes
 * one creates it and all return the same; a kill leaves the whole file or none.
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
      // Unlike a rename, a link never replaces the file of a faster process.
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

/** The identity of this machine's data folder: a random uuid, created at the first call and constant afterwards. */
export const hostId = (dataDir: string): Promise<string> => textMadeOnce(join(resolve(dataDir), 'host-id'), randomUUID)
