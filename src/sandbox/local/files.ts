import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { constants } from 'node:fs'
import { type FileHandle, lstat, mkdir, open, readdir, rename, unlink } from 'node:fs/promises'
import { join, posix } from 'node:path'
import { type FileStat, SandboxCapacityError, type SandboxFiles, SandboxPathError } from '../driver.ts'

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK, O_RDONLY } = constants

interface Home {
  path: string
  /** Who owns what is written; null when that is the control plane's own user. */
  uid: number | null
  /** A folder on the same file system that the tenant cannot reach. */
  uploads: string
}

interface Place {
  path: string
  folders: string[]
  /** Empty for the home itself. */
  name: string
}

const isCode = (error: unknown, ...codes: string[]) => codes.includes((error as NodeJS.ErrnoException).code ?? '')

/** What the tenant's own files, links and pipes can make a call end with. */
const refusals = ['ELOOP', 'ENOTDIR', 'EISDIR', 'ENOTEMPTY', 'EEXIST', 'EINVAL', 'ENXIO', 'ENAMETOOLONG', 'EACCES']

function inWords(error: unknown, path: string): unknown {
  if (isCode(error, 'ENOSPC', 'EDQUOT')) {
    return new SandboxCapacityError('the disk has no room left for this file', { cause: error })
  }
  if (!isCode(error, ...refusals)) return error
  return new SandboxPathError(`${JSON.stringify(path)} is not a path that can be used here`, { cause: error })
}

const absent = (path: string) => new SandboxPathError(`${JSON.stringify(path)} does not exist`)

function placeOf(path: string): Place {
  const normal = posix.normalize(path)
  if (path.includes('\0') || normal.startsWith('/') || normal === '..' || normal.startsWith('../')) {
    throw new SandboxPathError(`${JSON.stringify(path)} leads out of the folder`)
  }
  const folders = normal.split('/').filter((part) => part !== '.' && part !== '')
  return { path, folders, name: folders.pop() ?? '' }
}

function fileOf(path: string): Place {
  const place = placeOf(path)
  if (place.name === '' || path.endsWith('/')) throw new SandboxPathError(`${JSON.stringify(path)} names no file`)
  return place
}

/**
 * A name in an open folder. The kernel goes by the folder itself, not by its path, so a tenant who puts a symbolic link
 * in the place of a folder in that very moment changes nothing.
 */
const at = (folder: FileHandle, name: string) => `/proc/self/fd/${folder.fd}/${name}`

const openFolder = (path: string) => open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)

/** Opens a folder below the home, one name at a time and through no link. With `make`, missing ones are made. */
async function openBelow(home: Home, folders: readonly string[], make = false): Promise<FileHandle> {
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
    throw isCode(error, 'ENOENT') ? absent(path) : inWords(error, path)
  }
}

async function statOf(path: string, name: string): Promise<FileStat | null> {
  try {
    const stat = await lstat(path)
    const kind = stat.isFile() ? 'file' : stat.isDirectory() ? 'directory' : 'other'
    return { name, kind, size: stat.size, modifiedAt: stat.mtime, mode: stat.mode & 0o7777 }
  } catch (error) {
    if (isCode(error, 'ENOENT')) return null
    throw error
  }
}

/** Reads a plain file of the tenant's own: no pipe or device, and no other link to somebody else's file. */
async function readPlain(path: string, home: Home, place: Place, maxBytes: number): Promise<Buffer> {
  await using file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  const stat = await file.stat()
  if (!stat.isFile() || (stat.nlink > 1 && home.uid !== null && stat.uid !== home.uid)) {
    throw new SandboxPathError(`${JSON.stringify(place.path)} is not a file that can be read`)
  }
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of file.createReadStream({ end: maxBytes, autoClose: false })) {
    size += chunk.length
    chunks.push(chunk)
  }
  if (size > maxBytes) throw new SandboxPathError(`${JSON.stringify(place.path)} has more than ${maxBytes} bytes`)
  return Buffer.concat(chunks)
}

/** By `rm`, which goes by open folders, as the tenant: whatever it is led to, it removes only what the tenant may. */
async function removeTree(folder: FileHandle, name: string, uid: number | null, signal: AbortSignal): Promise<void> {
  const child = spawn('/bin/rm', ['-rf', '--', `./${name}`], {
    ...(uid !== null && { uid, gid: uid }),
    cwd: `/proc/${process.pid}/fd/${folder.fd}`,
    env: {},
    stdio: 'ignore',
    signal,
  })
  const [code] = await once(child, 'exit')
  if (code !== 0) throw new Error(`rm ended with code ${code}`)
}

/** The files of a sandbox, read and written by the control plane as the folder's owner could and not beyond. */
export function filesIn(findHome: () => Promise<Home>): SandboxFiles {
  /** Runs a call on the folder that holds the place; null when something on the way or at its end is not there. */
  async function inFolder<T>(
    place: Place,
    missing: 'make' | 'leave',
    signal: AbortSignal,
    call: (folder: FileHandle, home: Home) => Promise<T>,
  ): Promise<T | null> {
    signal.throwIfAborted()
    const home = await findHome()
    try {
      await using folder = await openBelow(home, place.folders, missing === 'make')
      return await call(folder, home)
    } catch (error) {
      signal.throwIfAborted()
      if (isCode(error, 'ENOENT')) return null
      throw inWords(error, place.path)
    }
  }

  return {
    async list(path, signal) {
      const { folders, name } = placeOf(path)
      const place = { path, folders: name ? [...folders, name] : folders, name: '' }
      const stats = await inFolder(place, 'leave', signal, async (folder) => {
        const names = await readdir(at(folder, '.'))
        return Promise.all(names.sort().map((entry) => statOf(at(folder, entry), entry)))
      })
      if (!stats) throw absent(path)
      return stats.filter((stat) => stat !== null)
    },
    async stat(path, signal) {
      const place = placeOf(path)
      const name = place.name || '.'
      return inFolder(place, 'leave', signal, (folder) => statOf(at(folder, name), name))
    },
    async read(path, { maxBytes }, signal) {
      const place = fileOf(path)
      return inFolder(place, 'leave', signal, (folder, home) =>
        readPlain(at(folder, place.name), home, place, maxBytes),
      )
    },
    async write(path, content, { mode }, signal) {
      const place = fileOf(path)
      const written = await inFolder(place, 'make', signal, async (folder, home) => {
        const upload = join(home.uploads, randomUUID())
        try {
          await using file = await open(upload, 'wx', 0o600)
          await file.writeFile(content, { signal })
          if (home.uid !== null) await file.chown(home.uid, home.uid)
          await file.chmod(mode & 0o777)
          await file.datasync()
          await rename(upload, at(folder, place.name))
          return true
        } catch (error) {
          await unlink(upload).catch(() => {})
          throw error
        }
      })
      if (!written) throw absent(path) // the tenant has removed its folder meanwhile
    },
    async move(from, to, signal) {
      const source = fileOf(from)
      const target = fileOf(to)
      const moved = await inFolder(source, 'leave', signal, async (sourceFolder) => {
        if (!(await statOf(at(sourceFolder, source.name), source.name))) return null
        return inFolder(target, 'make', signal, async (targetFolder) => {
          await rename(at(sourceFolder, source.name), at(targetFolder, target.name))
          return true
        })
      })
      if (!moved) throw absent(from)
    },
    async remove(path, signal) {
      const place = placeOf(path)
      if (!place.name) throw new SandboxPathError('the whole folder cannot be removed')
      await inFolder(place, 'leave', signal, async (folder, home) => {
        try {
          await unlink(at(folder, place.name))
        } catch (error) {
          if (!isCode(error, 'EISDIR')) throw error
          await removeTree(folder, place.name, home.uid, signal)
        }
      })
    },
  }
}
