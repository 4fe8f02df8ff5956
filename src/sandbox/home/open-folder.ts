import { constants } from 'node:fs'
import { type FileHandle, lstat, mkdir, open } from 'node:fs/promises'
import { posix } from 'node:path'
import { type PathFault, SandboxCapacityError, SandboxPathError } from '#sandbox/errors.ts'

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = constants

/** A sandbox's own folder on this machine. */
export interface Home {
  path: string
  /** The owner of written files; null for the control plane's own user. */
  uid: number | null
  /** A folder on the same file system that the tenant cannot reach. */
  uploads: string
}

/** A path below a home, split into its parts. */
export interface HomePath {
  path: string
  folders: string[]
  /** Empty for the home itself. */
  name: string
}

export const isCode = (error: unknown, ...codes: string[]): boolean =>
  codes.includes((error as NodeJS.ErrnoException).code ?? '')

/** The codes of system calls that fail because of the tenant's own files, links and pipes. */
const faults: Partial<Record<string, PathFault>> = {
  ELOOP: 'link',
  ENOTDIR: 'not_directory',
  EINVAL: 'into_itself', // of a rename
  ENXIO: 'special',
  ENAMETOOLONG: 'name_too_long',
  EACCES: 'forbidden',
  EPERM: 'forbidden',
  EAGAIN: 'locked',
  EISDIR: 'directory',
  ENOTEMPTY: 'not_empty',
  EEXIST: 'exists',
}

const messages: Record<PathFault, string> = {
  outside: 'leads out of the folder',
  missing: 'does not exist',
  exists: 'exists already',
  directory: 'is a folder',
  not_empty: 'is a folder that is not empty',
  too_large: 'is too large',
  changed: 'became shorter while it was read',
  link: 'is a symbolic link, or leads through one',
  not_directory: 'is not a folder',
  into_itself: 'is below the folder that is to be moved',
  special: 'is neither a file nor a folder',
  name_too_long: 'has a name that is too long',
  forbidden: 'has permissions that forbid it',
  locked: 'is locked',
}

export const pathError = (fault: PathFault, path: string, options?: ErrorOptions): SandboxPathError =>
  new SandboxPathError(fault, `${JSON.stringify(path)} ${messages[fault]}`, options)

/**
 * Converts the error of a system call on the path to a SandboxPathError or SandboxCapacityError; returns others
 * unchanged.
 */
export function sandboxErrorFor(error: unknown, path: string): unknown {
  if (isCode(error, 'ENOSPC', 'EDQUOT')) {
    return new SandboxCapacityError('the disk has no room left for this file', { cause: error })
  }
  const fault = faults[(error as NodeJS.ErrnoException).code ?? '']
  return fault ? pathError(fault, path, { cause: error }) : error
}

/** Throws a SandboxPathError for a path that leads out of the home. */
export function parsePath(path: string): HomePath {
  const normal = posix.normalize(path)
  if (path.includes('\0') || normal.startsWith('/') || normal === '..' || normal.startsWith('../')) {
    throw pathError('outside', path)
  }
  const folders = normal.split('/').filter((part) => part !== '.' && part !== '')
  return { path, folders, name: folders.pop() ?? '' }
}

/**
 * The path of an entry of an open folder. The kernel uses the folder itself, not its path: a tenant who replaces a
 * folder by a symbolic link at that moment changes nothing.
 */
export const entryPath = (folder: FileHandle, name: string): string => `/proc/self/fd/${folder.fd}/${name}`

const openFolder = (path: string) => open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)

/** Opens a folder by the path of its entry. Linux returns the same code for a link as for a file. */
async function openEntry(path: string, shownPath: string): Promise<FileHandle> {
  try {
    return await openFolder(path)
  } catch (error) {
    if (!isCode(error, 'ENOTDIR')) throw error
    throw pathError((await lstat(path)).isSymbolicLink() ? 'link' : 'not_directory', shownPath, { cause: error })
  }
}

/** Opens a folder below the home, one name at a time and through no link. `make` creates missing folders. */
export async function openBelow(home: Home, folders: readonly string[], make = false): Promise<FileHandle> {
  let folder = await openFolder(home.path)
  for (const [index, name] of folders.entries()) {
    await using parent = folder
    const path = entryPath(parent, name)
    const shownPath = folders.slice(0, index + 1).join('/')
    try {
      folder = await openEntry(path, shownPath)
    } catch (error) {
      if (!make || !isCode(error, 'ENOENT')) throw error
      await mkdir(path, { mode: 0o700 }).catch((late) => {
        if (!isCode(late, 'EEXIST')) throw late
      })
      folder = await openEntry(path, shownPath)
      if (home.uid !== null) await folder.chown(home.uid, home.uid)
    }
  }
  return folder
}

/** Opens a folder by its path below the home. Throws a SandboxPathError when it leads elsewhere or does not exist. */
export async function openFolderAt(home: Home, path: string): Promise<FileHandle> {
  const { folders, name } = parsePath(path)
  try {
    return await openBelow(home, name ? [...folders, name] : folders)
  } catch (error) {
    throw isCode(error, 'ENOENT') ? pathError('missing', path, { cause: error }) : sandboxErrorFor(error, path)
  }
}
