import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, opendir, rename, rmdir, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { addAbortSignal, Readable } from 'node:stream'
import type { FileStat, OpenFile, SandboxFiles } from '#sandbox/driver.ts'
import { asUser } from './as-user.ts'
import { at, fault, type Home, inWords, isCode, openBelow, type Place, placeOf } from './open-folder.ts'

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY, S_IROTH } = constants

const chunkBytes = 256 * 1024
const maxMs = 8.64e15

function named(path: string): Place {
  const place = placeOf(path)
  if (place.name === '') throw fault('directory', path)
  return place
}

function fileOf(path: string): Place {
  if (path.endsWith('/')) throw fault('directory', path)
  return named(path)
}

/** A file system may hold times, which the tenant sets at will, beyond those of a Date. */
const dateOf = (ms: number) => new Date(Math.max(-maxMs, Math.min(maxMs, ms)))

async function statOf(path: string, name: string): Promise<FileStat | null> {
  try {
    const stat = await lstat(path)
    const kind = stat.isFile() ? 'file' : stat.isDirectory() ? 'directory' : stat.isSymbolicLink() ? 'link' : 'other'
    return { name, kind, size: stat.size, modifiedAt: dateOf(stat.mtimeMs), mode: stat.mode & 0o7777 }
  } catch (error) {
    if (isCode(error, 'ENOENT')) return null
    throw error
  }
}

function contentOf(
  file: FileHandle,
  path: string,
  range: { start: number; end: number },
  signal: AbortSignal,
): Readable {
  let { start } = range
  const content = new Readable({
    highWaterMark: chunkBytes,
    async read() {
      if (start >= range.end) return void this.push(null)
      try {
        const chunk = Buffer.allocUnsafeSlow(Math.min(chunkBytes, range.end - start))
        const { bytesRead } = await file.read(chunk, 0, chunk.length, start)
        if (bytesRead === 0) throw fault('changed', path)
        start += bytesRead
        this.push(chunk.subarray(0, bytesRead))
      } catch (error) {
        this.destroy(error as Error)
      }
    },
    destroy(error, done) {
      file.close().then(() => done(error), done)
    },
  })
  return addAbortSignal(signal, content)
}

/** Opens a plain file, no pipe or device, and of somebody else's, to which it may be a link, only what all may read. */
async function openPlain(
  path: string,
  home: Home,
  place: Place,
  maxBytes: number,
  signal: AbortSignal,
): Promise<OpenFile> {
  const file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  try {
    const stat = await file.stat()
    if (stat.isDirectory()) throw fault('directory', place.path)
    const isReadable = home.uid === null || stat.uid === home.uid || (stat.mode & S_IROTH) !== 0
    if (!stat.isFile() || !isReadable) throw fault('unusable', place.path)
    if (stat.size > maxBytes) throw fault('too_large', place.path)
    const { size, mtimeMs } = stat
    return {
      size,
      modifiedAt: dateOf(mtimeMs),
      content: (range = { start: 0, end: size }) => contentOf(file, place.path, range, signal),
      close: () => file.close(),
    }
  } catch (error) {
    await file.close()
    throw error
  }
}

interface NewFile {
  place: Place
  uid: number | null
  mode: number
  maxBytes: number
}

/** Writes a file that was not there, down to the disk. */
async function fill(path: string, content: Readable, options: NewFile, signal: AbortSignal): Promise<void> {
  const { place, uid, mode, maxBytes } = options
  await using file = await open(path, 'wx', 0o600)
  if (uid !== null) await file.chown(uid, uid)
  await file.chmod(mode & 0o777)
  let size = 0
  for await (const chunk of addAbortSignal(signal, content)) {
    size += chunk.length
    if (size > maxBytes) throw fault('too_large', place.path)
    await file.appendFile(chunk)
  }
  await file.datasync()
}

/** By `rm`, which goes by open folders, as the tenant: whatever it is led to, it removes only what the tenant may. */
async function removeTree(
  folder: FileHandle,
  { path, name }: Place,
  uid: number | null,
  signal: AbortSignal,
): Promise<void> {
  const [program, ...rest] = asUser(uid, ['/bin/rm', '-rf', '--', `./${name}`])
  const child = spawn(program, rest, {
    cwd: `/proc/${process.pid}/fd/${folder.fd}`,
    env: {},
    stdio: 'ignore',
    signal,
    killSignal: 'SIGKILL', // the tenant may have stopped it
  })
  const [code] = await once(child, 'exit')
  if (code !== 0) throw fault('unusable', path) // some of it is not the tenant's to remove
}

/** The files of a sandbox, read and written by the control plane as the folder's owner could and not beyond. */
export function filesIn(findHome: () => Promise<Home>): SandboxFiles {
  /** Runs a call on the home; null when something on the way or at its end is not there. */
  async function inHome<T>(path: string, signal: AbortSignal, call: (home: Home) => Promise<T>): Promise<T | null> {
    signal.throwIfAborted()
    const home = await findHome()
    try {
      return await call(home)
    } catch (error) {
      signal.throwIfAborted()
      if (isCode(error, 'ENOENT')) return null
      throw inWords(error, path)
    }
  }

  /** Runs a call on the folder that holds the place. */
  const inFolder = <T>(
    place: Place,
    missing: 'make' | 'leave',
    signal: AbortSignal,
    call: (folder: FileHandle, home: Home) => Promise<T>,
  ): Promise<T | null> =>
    inHome(place.path, signal, async (home) => {
      await using folder = await openBelow(home, place.folders, missing === 'make')
      return await call(folder, home)
    })

  return {
    async list(path, { maxEntries }, signal) {
      const { folders, name } = placeOf(path)
      const place = { path, folders: name ? [...folders, name] : folders, name: '' }
      const listed = await inFolder(place, 'leave', signal, async (folder) => {
        const names: string[] = []
        for await (const { name } of await opendir(at(folder, '.'))) if (names.push(name) > maxEntries) break
        const isWhole = names.length <= maxEntries
        const shown = names.slice(0, maxEntries).sort()
        const entries = await Promise.all(shown.map((entry) => statOf(at(folder, entry), entry)))
        return { entries: entries.filter((entry) => entry !== null), isWhole }
      })
      if (!listed) throw fault('missing', path)
      return listed
    },
    async stat(path, signal) {
      const place = placeOf(path)
      const name = place.name || '.'
      return inFolder(place, 'leave', signal, (folder) => statOf(at(folder, name), name))
    },
    async read(path, { maxBytes }, signal) {
      const place = fileOf(path)
      return inFolder(place, 'leave', signal, (folder, home) =>
        openPlain(at(folder, place.name), home, place, maxBytes, signal),
      )
    },
    async write(path, content, { mode, maxBytes = Number.POSITIVE_INFINITY }, signal) {
      const place = fileOf(path)
      const replaced = await inFolder(place, 'leave', signal, (folder) => statOf(at(folder, place.name), place.name))
      if (replaced?.kind === 'directory') throw fault('directory', path)
      const kept = replaced?.kind === 'file' ? replaced.mode : 0o600
      const written = await inHome(path, signal, async (home) => {
        const upload = join(home.uploads, randomUUID())
        try {
          const source = Buffer.isBuffer(content) ? Readable.from([content]) : content
          await fill(upload, source, { place, uid: home.uid, mode: mode ?? kept, maxBytes }, signal)
          // Only now: what fails leaves no folders behind.
          await using folder = await openBelow(home, place.folders, true)
          await rename(upload, at(folder, place.name))
          return true
        } catch (error) {
          await unlink(upload).catch(() => {})
          throw error
        }
      })
      if (!written) throw fault('missing', path) // the tenant has removed its folder meanwhile
    },
    async mkdir(path, signal) {
      const { folders, name } = named(path)
      const made = await inHome(path, signal, async (home) => {
        await using _folder = await openBelow(home, [...folders, name], true)
        return true
      })
      if (!made) throw fault('missing', path)
    },
    async move(from, to, { overwrite }, signal) {
      const source = named(from)
      const target = named(to)
      const moved = await inFolder(source, 'leave', signal, async (sourceFolder) => {
        const what = await statOf(at(sourceFolder, source.name), source.name)
        if (!what) return null
        return inFolder(target, 'make', signal, async (targetFolder) => {
          const replaced = await statOf(at(targetFolder, target.name), target.name)
          if (replaced && (!overwrite || what.kind === 'directory')) throw fault('exists', to)
          if (replaced?.kind === 'directory') throw fault('directory', to)
          await rename(at(sourceFolder, source.name), at(targetFolder, target.name))
          return true
        })
      })
      if (!moved) throw fault('missing', from)
    },
    async remove(path, { recursive }, signal) {
      const place = named(path)
      const removed = await inFolder(place, 'leave', signal, async (folder, home) => {
        const target = at(folder, place.name)
        const what = await statOf(target, place.name)
        if (what?.kind !== 'directory') await unlink(target)
        else if (recursive) await removeTree(folder, place, home.uid, signal)
        else await rmdir(target)
        return true
      })
      return removed ?? false
    },
  }
}
