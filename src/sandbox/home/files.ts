import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { type FileHandle, lstat, open, opendir, rename, rmdir, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { addAbortSignal, Readable } from 'node:stream'
import { commandAsUser } from '#sandbox/command-as-user.ts'
import type { FileStat, SandboxFiles } from '#sandbox/driver.ts'
import {
  entryPath,
  type Home,
  type HomePath,
  isCode,
  openBelow,
  parsePath,
  pathError,
  sandboxErrorFor,
} from './open-folder.ts'
import { dateOf, openPlain } from './read-file.ts'

/** Throws a SandboxPathError for the home itself. */
function parseNamed(path: string): HomePath {
  const parsed = parsePath(path)
  if (parsed.name === '') throw pathError('directory', path)
  return parsed
}

/** Throws a SandboxPathError for a path that can only be a folder's. */
function parseFile(path: string): HomePath {
  if (path.endsWith('/')) throw pathError('directory', path)
  return parseNamed(path)
}

async function statOf(path: string | Buffer, name: string): Promise<FileStat | null> {
  try {
    const stat = await lstat(path)
    const kind = stat.isFile() ? 'file' : stat.isDirectory() ? 'directory' : stat.isSymbolicLink() ? 'link' : 'other'
    return { name, kind, size: stat.size, modifiedAt: dateOf(stat.mtimeMs), mode: stat.mode & 0o7777 }
  } catch (error) {
    if (isCode(error, 'ENOENT')) return null
    throw error
  }
}

interface NewFile {
  /** The path in errors. */
  shownPath: string
  uid: number | null
  mode: number
  maxBytes: number
}

/** Writes a new file and flushes it to the disk. */
async function writeNew(path: string, content: Readable, options: NewFile, signal: AbortSignal): Promise<void> {
  const { shownPath, uid, mode, maxBytes } = options
  await using file = await open(path, 'wx', 0o600)
  if (uid !== null) await file.chown(uid, uid)
  await file.chmod(mode & 0o777)
  let size = 0
  for await (const chunk of addAbortSignal(signal, content)) {
    size += chunk.length
    if (size > maxBytes) throw pathError('too_large', shownPath)
    await file.appendFile(chunk)
  }
  await file.datasync()
}

/**
 * Messages of `rm` about files that the tenant may not remove, and folders that a program has written into meanwhile.
 */
const refused = /^(?:\/bin\/)?rm: .*: (?:Permission denied|Operation not permitted)$/m
const written = /^(?:\/bin\/)?rm: .*: Directory not empty$/m
/** Maximum length of the output of `rm`, which may be a line for each file. */
const mostSaid = 65_536
/** Another process of the tenant may hold its output open. */
const endMs = 1000

/**
 * Removes a folder with `rm`, which uses open folders, as the tenant: so it removes only files that the tenant may
 * remove. Throws a SandboxPathError if it may not, and another error, without a file name, if `rm` fails otherwise.
 */
async function removeTree(
  folder: FileHandle,
  { path, name }: HomePath,
  uid: number | null,
  signal: AbortSignal,
): Promise<void> {
  const [program, ...rest] = commandAsUser(uid, ['/bin/rm', '-rf', '--', `./${name}`])
  const child = spawn(program, rest, {
    cwd: `/proc/${process.pid}/fd/${folder.fd}`,
    env: {}, // for English messages
    stdio: ['ignore', 'ignore', 'pipe'],
    signal,
    killSignal: 'SIGKILL', // the tenant may have stopped it
  })
  let said = ''
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    said += text.slice(0, mostSaid - said.length)
  })
  child.once('exit', () => setTimeout(() => child.stderr?.destroy(), endMs).unref())
  const [code, endedBy] = await once(child, 'close')
  if (endedBy !== null) throw new Error(`the removal of a folder was ended by ${endedBy}`)
  if (code === 0) return
  if (refused.test(said)) throw pathError('forbidden', path)
  if (written.test(said)) throw pathError('not_empty', path)
  throw new Error(`the removal of a folder failed with ${code}: ${/: ([\w ]+)\n/.exec(said)?.[1]}`)
}

/** The files of a sandbox. The control plane accesses them with exactly the rights of the folder's owner. */
export function filesIn(findHome: () => Promise<Home>): SandboxFiles {
  /** Runs a call on the home; returns null when the path, or a folder on the way to it, does not exist. */
  async function inHome<T>(path: string, signal: AbortSignal, call: (home: Home) => Promise<T>): Promise<T | null> {
    signal.throwIfAborted()
    const home = await findHome()
    try {
      return await call(home)
    } catch (error) {
      signal.throwIfAborted()
      if (isCode(error, 'ENOENT')) return null
      throw sandboxErrorFor(error, path)
    }
  }

  /** Runs a call on the folder that contains the path's last name. */
  const inFolder = <T>(
    { path, folders }: HomePath,
    missing: 'make' | 'leave',
    signal: AbortSignal,
    call: (folder: FileHandle, home: Home) => Promise<T>,
  ): Promise<T | null> =>
    inHome(path, signal, async (home) => {
      await using folder = await openBelow(home, folders, missing === 'make')
      return await call(folder, home)
    })

  return {
    async list(path, { maxEntries }, signal) {
      const { folders, name } = parsePath(path)
      const parsed = { path, folders: name ? [...folders, name] : folders, name: '' }
      const listed = await inFolder(parsed, 'leave', signal, async (folder) => {
        const names: string[] = []
        // A name need not be UTF-8. Latin-1 keeps its bytes.
        const opened = await opendir(entryPath(folder, '.'), { encoding: 'latin1' })
        for await (const { name } of opened) if (names.push(name) > maxEntries) break
        const isWhole = names.length <= maxEntries
        const shown = names.slice(0, maxEntries).sort()
        const bytesOf = (text: string) => Buffer.from(text, 'latin1')
        const statEntry = (name: string) => statOf(bytesOf(entryPath(folder, name)), bytesOf(name).toString())
        const entries = await Promise.all(shown.map(statEntry))
        return { entries: entries.filter((entry) => entry !== null), isWhole }
      })
      if (!listed) throw pathError('missing', path)
      return listed
    },
    async stat(path, signal) {
      const parsed = parsePath(path)
      const name = parsed.name || '.'
      return inFolder(parsed, 'leave', signal, (folder) => statOf(entryPath(folder, name), name))
    },
    async read(path, { maxBytes }, signal) {
      const parsed = parseFile(path)
      return inFolder(parsed, 'leave', signal, (folder, home) =>
        openPlain(entryPath(folder, parsed.name), { home, shownPath: path, maxBytes }, signal),
      )
    },
    async write(path, content, { mode, maxBytes = Number.POSITIVE_INFINITY }, signal) {
      const parsed = parseFile(path)
      const { name } = parsed
      const replaced = await inFolder(parsed, 'leave', signal, (folder) => statOf(entryPath(folder, name), name))
      if (replaced?.kind === 'directory') throw pathError('directory', path)
      const oldMode = replaced?.kind === 'file' ? replaced.mode : 0o600
      const written = await inHome(path, signal, async (home) => {
        const upload = join(home.uploads, randomUUID())
        try {
          const source = Buffer.isBuffer(content) ? Readable.from([content]) : content
          await writeNew(upload, source, { shownPath: path, uid: home.uid, mode: mode ?? oldMode, maxBytes }, signal)
          // Folders are made last, so that a failed write leaves none behind.
          await using folder = await openBelow(home, parsed.folders, true)
          await rename(upload, entryPath(folder, name))
          return true
        } catch (error) {
          await unlink(upload).catch(() => {})
          throw error
        }
      })
      if (!written) throw pathError('missing', path) // the tenant has removed a folder meanwhile
    },
    async mkdir(path, signal) {
      const { folders, name } = parseNamed(path)
      const made = await inHome(path, signal, async (home) => {
        await using _folder = await openBelow(home, [...folders, name], true)
        return true
      })
      if (!made) throw pathError('missing', path)
    },
    async move(from, to, { overwrite }, signal) {
      const source = parseNamed(from)
      const target = parseNamed(to)
      const moved = await inFolder(source, 'leave', signal, async (sourceFolder) => {
        const moving = await statOf(entryPath(sourceFolder, source.name), source.name)
        if (!moving) return null
        return inFolder(target, 'make', signal, async (targetFolder) => {
          const replaced = await statOf(entryPath(targetFolder, target.name), target.name)
          if (replaced && (!overwrite || moving.kind === 'directory')) throw pathError('exists', to)
          if (replaced?.kind === 'directory') throw pathError('directory', to)
          await rename(entryPath(sourceFolder, source.name), entryPath(targetFolder, target.name))
          return true
        })
      })
      if (!moved) throw pathError('missing', from)
    },
    async remove(path, { recursive }, signal) {
      const parsed = parseNamed(path)
      const removed = await inFolder(parsed, 'leave', signal, async (folder, home) => {
        const target = entryPath(folder, parsed.name)
        const stat = await statOf(target, parsed.name)
        if (stat?.kind !== 'directory') await unlink(target)
        else if (recursive) await removeTree(folder, parsed, home.uid, signal)
        else await rmdir(target)
        return true
      })
      return removed ?? false
    },
  }
}
