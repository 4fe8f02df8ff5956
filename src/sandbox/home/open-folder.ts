import { constants } from 'node:fs'
import { type FileHandle, mkdir, open } from 'node:fs/promises'
import { posix } from 'node:path'
import { type PathFault, SandboxCapacityError, SandboxPathError } from '#sandbox/errors.ts'

const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = constants

/** A sandbox's own folder on this machine. */
export interface Home {
  path: string
  /** Who owns what is written; null when that is the control plane's own user. */
  uid: number | null
  /** A folder on the same file system that the tenant cannot reach. */
  uploads: string
}

/** A path below a home, taken apart. */
export interface Place {
  path: string
  folders: string[]
  /** Empty for the home itself. */
  name: string
}

export const isCode = (error: unknown, ...codes: string[]): boolean =>
  codes.includes((error as NodeJS.ErrnoException).code ?? '')

/** What the tenant's own files, links and pipes can make a call end with. */
const faults: Partial<Record<string, PathFault>> = {
  ELOOP: 'unusable',
  ENOTDIR: 'unusable',
  EINVAL: 'unusable',
  ENXIO: 'unusable',
  ENAMETOOLONG: 'unusable',
  EACCES: 'unusable',
  EPERM: 'unusable',
  EAGAIN: 'unusable', // leased by the tenant
  EISDIR: 'directory',
  ENOTEMPTY: 'not_empty',
  EEXIST: 'exists',
}

const words: Record<PathFault, string> = {
  outside: 'leads out of the folder',
  missing: 'does not exist',
  exists: 'exists already',
  directory: 'is a folder',
  not_empty: 'is a folder that is not empty',
  too_large: 'is too large',
  changed: 'became shorter while it was read',
  unusable: 'is not a path that can be used here',
}

export const fault = (kind: PathFault, path: string, options?: ErrorOptions): SandboxPathError =>
  new SandboxPathError(kind, `${JSON.stringify(path)} ${words[kind]}`, options)

/** A failed system call as what it means to the caller; any other error as it is. */
export function inWords(error: unknown, path: string): unknown {
  if (isCode(error, 'ENOSPC', 'EDQUOT')) {
    return new SandboxCapacityError('the disk has no room left for this file', { cause: error })
  }
  const kind = faults[(error as NodeJS.ErrnoException).code ?? '']
  return kind ? fault(kind, path, { cause: error }) : error
}

export function placeOf(path: string): Place {
  const normal = posix.normalize(path)
  if (path.includes('\0') || normal.startsWith('/') || normal === '..' || normal.startsWith('../')) {
    throw fault('outside', path)
  }
  const folders = normal.split('/').filter((part) => part !== '.' && part !== '')
  return { path, folders, name: folders.pop() ?? '' }
}

/**
 * A name in an open folder. The kernel goes by the folder itself, not by its path, so a tenant who puts a symbolic link
 * in the place of a folder in that very moment changes nothing.
 */
export const at = (folder: FileHandle, name: string): string => `/proc/self/fd/${folder.fd}/${name}`

const openFolder = (path: string) => open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)

/** Opens a folder below the home, one name at a time and through no link. With `make`, missing ones are made. */
export async function openBelow(home: Home, folders: readonly string[], make = false): Promise<FileHandle> {
  let folder = await openFolder(home.path)
  for (const name of folders) {
    await using parent = folder
    const path = at(parent, name)
    try {
      folder = await openFolder(path)
    } catch (error) {
      if (!make || !isCode(error, 'ENOENT')) throw error
      await mkdir(path, { mode: 0o700 }).catch((late) => {
        if (!isCode(late, 'EEXIST')) throw late
      })
      folder = await openFolder(path)
      if (home.uid !== null) await folder.chown(home.uid, home.uid)
    }
  }
  return folder
}

/** Opens a folder by its path below the home; throws a SandboxPathError for one that leads elsewhere or is not there. */
export async function openFolderAt(home: Home, path: string): Promise<FileHandle> {
  const { folders, name } = placeOf(path)
  try {
    return await openBelow(home, name ? [...folders, name] : folders)
  } catch (error) {
    throw isCode(error, 'ENOENT') ? fault('missing', path, { cause: error }) : inWords(error, path)
  }
}
