import { randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, lstat, mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import { posix } from 'node:path'
import { type FileStat, type SandboxFiles, SandboxPathError } from '../driver.ts'

const { O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_RDONLY, O_WRONLY } = constants

const codeOf = (error: unknown): string => (error instanceof Error && 'code' in error ? String(error.code) : '')

/** The parts of a path below the home; none for the home itself. */
function partsOf(path: string): string[] {
  if (path.includes('\0') || posix.isAbsolute(path))
    throw new SandboxPathError(`${JSON.stringify(path)} is not a path in the sandbox`)
  const parts = path.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw new SandboxPathError(`${JSON.stringify(path)} leads out of the sandbox`)
  return parts
}

/** Opens a folder's entry without following links. `/proc/self/fd` stands in for openat, which Node.js does not have. */
const entry = (folder: FileHandle, name: string): string => `/proc/self/fd/${folder.fd}/${name}`

const kindOf = (info: { isFile(): boolean; isDirectory(): boolean }): FileStat['kind'] =>
  info.isFile() ? 'file' : info.isDirectory() ? 'directory' : 'other'

/**
 * The files below a home that its user can write, as another user: each folder on the way is opened without following
 * links and held open, so that nothing the tenant does meanwhile leads elsewhere. `owner` is null when they share a user.
 */
export function confinedFiles(home: string, owner: number | null): SandboxFiles {
  const openFolder = (path: string) => open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)

  /** Runs `act` with the folder held open. `make` makes missing ones; null when one is missing otherwise. */
  async function inFolder<T>(
    parts: readonly string[],
    make: boolean,
    act: (folder: FileHandle) => Promise<T>,
  ): Promise<T | null> {
    let folder = await openFolder(home)
    try {
      for (const part of parts) {
        const path = entry(folder, part)
        if (make) await makeFolder(path)
        const next = await openFolder(path)
        await folder.close()
        folder = next
      }
      return await act(folder)
    } catch (error) {
      const code = codeOf(error)
      if (code === 'ENOENT') return null
      if (code === 'ELOOP' || code === 'ENOTDIR')
        throw new SandboxPathError(`${parts.join('/')} is not a folder of the sandbox`)
      throw error
    } finally {
      await folder.close()
    }
  }

  async function makeFolder(path: string): Promise<void> {
    try {
      await mkdir(path, { mode: 0o700 })
    } catch (error) {
      if (codeOf(error) === 'EEXIST') return
      throw error
    }
    if (owner === null) return
    const made = await openFolder(path)
    try {
      await made.chown(owner, owner)
    } finally {
      await made.close()
    }
  }

  function split(path: string): { folder: string[]; name: string } {
    const parts = partsOf(path)
    const name = parts.pop()
    if (name === undefined) throw new SandboxPathError('the sandbox itself is not a file')
    return { folder: parts, name }
  }

  async function statEntry(folder: FileHandle, name: string): Promise<FileStat | null> {
    try {
      const info = await lstat(entry(folder, name))
      return { name, kind: kindOf(info), size: info.size, modifiedAt: info.mtime, mode: info.mode & 0o7777 }
    } catch (error) {
      if (codeOf(error) === 'ENOENT') return null
      throw error
    }
  }

  async function readEntry(folder: FileHandle, name: string, path: string, maxBytes: number): Promise<Buffer> {
    // Without O_NONBLOCK opening a pipe would wait for its writer.
    const file = await open(entry(folder, name), O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
    try {
      const info = await file.stat()
      // A file of another user can only be a hard link that was planted.
      if (!info.isFile() || (owner !== null && info.uid !== owner))
        throw new SandboxPathError(`${path} is not a file of the sandbox`)
      const buffer = Buffer.alloc(Math.min(info.size, maxBytes) + 1)
      let length = 0
      while (length < buffer.length) {
        const { bytesRead } = await file.read(buffer, length, buffer.length - length)
        if (bytesRead === 0) break
        length += bytesRead
      }
      if (length > maxBytes) throw new SandboxPathError(`${path} is larger than ${maxBytes} bytes`)
      return buffer.subarray(0, length)
    } finally {
      await file.close()
    }
  }

  return {
    async list(path, signal) {
      signal.throwIfAborted()
      const found = await inFolder(partsOf(path), false, async (folder) => {
        const names = await readdir(`/proc/self/fd/${folder.fd}`)
        const stats = await Promise.all(names.sort().map((name) => statEntry(folder, name)))
        return stats.filter((info) => info !== null)
      })
      if (found === null) throw new SandboxPathError(`${path} is not there`)
      return found
    },
    async stat(path, signal) {
      signal.throwIfAborted()
      const { folder, name } = split(path)
      return inFolder(folder, false, (opened) => statEntry(opened, name))
    },
    async read(path, { maxBytes }, signal) {
      signal.throwIfAborted()
      const { folder, name } = split(path)
      return inFolder(folder, false, (opened) => readEntry(opened, name, path, maxBytes))
    },
    async write(path, content, { mode }, signal) {
      signal.throwIfAborted()
      const { folder, name } = split(path)
      await inFolder(folder, true, async (opened) => {
        const draft = entry(opened, `.${randomUUID()}`)
        const file = await open(draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode)
        try {
          await file.writeFile(content, { signal })
          await file.chmod(mode)
          if (owner !== null) await file.chown(owner, owner)
          await rename(draft, entry(opened, name))
        } catch (error) {
          await rm(draft, { force: true })
          if (codeOf(error) === 'EISDIR') throw new SandboxPathError(`${path} is a folder`)
          throw error
        } finally {
          await file.close()
        }
      })
    },
    async move(from, to, signal) {
      signal.throwIfAborted()
      const [source, target] = [split(from), split(to)]
      const moved = await inFolder(source.folder, false, (sourceFolder) =>
        inFolder(target.folder, true, async (targetFolder) => {
          if ((await statEntry(sourceFolder, source.name)) === null) return null
          await rename(entry(sourceFolder, source.name), entry(targetFolder, target.name))
          return true
        }),
      )
      if (!moved) throw new SandboxPathError(`${from} is not there`)
    },
    async remove(path, signal) {
      signal.throwIfAborted()
      const { folder, name } = split(path)
      await inFolder(folder, false, (opened) => rm(entry(opened, name), { recursive: true, force: true }))
    },
  }
}
