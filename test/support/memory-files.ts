import { posix } from 'node:path'
import { addAbortSignal, Readable } from 'node:stream'
import { type FileStat, type PathFault, type SandboxFiles, SandboxPathError } from '#sandbox/driver.ts'

/** The files of a folder by their whole paths; the content of a directory is null. */
export type MemoryFolder = Map<string, { content: Buffer | null; mode: number }>

/** The files of a fake sandbox, held in memory. `find` throws when the sandbox is missing. */
export function memoryFiles(find: () => MemoryFolder): SandboxFiles {
  const fault = (kind: PathFault, path: string) => new SandboxPathError(kind, `${JSON.stringify(path)} is ${kind}`)
  const confined = (path: string): string => {
    const normal = posix.normalize(path).replace(/\/$/, '')
    if (/^(\.\.)?(\/|$)/.test(normal) || path.includes('\0')) throw fault('outside', path)
    if (normal.split('/').some((name) => name.length > 255)) throw fault('name_too_long', path)
    for (let folder = posix.dirname(normal); folder !== '.'; folder = posix.dirname(folder)) {
      if (find().get(folder)?.content) throw fault('not_directory', path)
    }
    return normal
  }
  const named = (path: string): string => {
    const name = confined(path)
    if (name === '.') throw fault('directory', path)
    return name
  }
  const fileOf = (path: string): string => {
    const name = named(path)
    if (path.endsWith('/') || isFolder(name)) throw fault('directory', path)
    return name
  }
  const isFolder = (path: string) => path === '.' || find().get(path)?.content === null
  const below = (path: string) => [...find().keys()].filter((name) => path === '.' || name.startsWith(`${path}/`))
  const makeFolder = (path: string): void => {
    if (path === '.') return
    makeFolder(posix.dirname(path))
    if (!find().has(path)) find().set(path, { content: null, mode: 0o700 })
  }
  const statOf = (path: string): FileStat | null => {
    const entry = path === '.' ? { content: null, mode: 0o700 } : find().get(path)
    if (!entry) return null
    const { content, mode } = entry
    const kind = content ? 'file' : 'directory'
    return { name: posix.basename(path), kind, size: content?.length ?? 0, modifiedAt: new Date(0), mode }
  }
  return {
    async list(path, { maxEntries }, signal) {
      signal.throwIfAborted()
      const folder = confined(path)
      find()
      if (!isFolder(folder)) throw fault(statOf(folder) ? 'not_directory' : 'missing', path)
      const names = below(folder).filter((name) => posix.dirname(name) === folder)
      const entries = names
        .slice(0, maxEntries)
        .sort()
        .flatMap((name) => statOf(name) ?? [])
      return { entries, isWhole: names.length <= maxEntries }
    },
    async stat(path, signal) {
      signal.throwIfAborted()
      find()
      return statOf(confined(path))
    },
    async read(path, { maxBytes }, signal) {
      signal.throwIfAborted()
      const content = find().get(fileOf(path))?.content
      if (!content) return null
      if (content.length > maxBytes) throw fault('too_large', path)
      return {
        size: content.length,
        modifiedAt: new Date(0),
        content: ({ start, end } = { start: 0, end: content.length }) =>
          addAbortSignal(signal, Readable.from([content.subarray(start, end)])),
        close: async () => {},
      }
    },
    async write(path, content, { mode, maxBytes = Number.POSITIVE_INFINITY }, signal) {
      signal.throwIfAborted()
      const name = fileOf(path)
      const chunks: Buffer[] = []
      let size = 0
      try {
        for await (const chunk of addAbortSignal(
          signal,
          Buffer.isBuffer(content) ? Readable.from([content]) : content,
        )) {
          size += chunk.length
          if (size > maxBytes) throw fault('too_large', path)
          chunks.push(chunk)
        }
      } finally {
        signal.throwIfAborted()
      }
      makeFolder(posix.dirname(name))
      find().set(name, { content: Buffer.concat(chunks), mode: mode ?? find().get(name)?.mode ?? 0o600 })
    },
    async mkdir(path, signal) {
      signal.throwIfAborted()
      const name = named(path)
      if (find().get(name)?.content) throw fault('not_directory', path)
      makeFolder(name)
    },
    async move(from, to, { overwrite }, signal) {
      signal.throwIfAborted()
      const [source, target] = [named(from), named(to)]
      const moving = statOf(source)
      const replaced = statOf(target)
      if (!moving) throw fault('missing', from)
      if (replaced && (!overwrite || moving.kind === 'directory')) throw fault('exists', to)
      if (replaced?.kind === 'directory') throw fault('directory', to)
      if (target.startsWith(`${source}/`)) throw fault('into_itself', to)
      makeFolder(posix.dirname(target))
      for (const name of [source, ...below(source)]) {
        const moved = find().get(name)
        find().delete(name)
        if (moved) find().set(target + name.slice(source.length), moved)
      }
    },
    async remove(path, { recursive }, signal) {
      signal.throwIfAborted()
      const name = named(path)
      if (!statOf(name)) return false
      if (!recursive && below(name).length > 0) throw fault('not_empty', path)
      for (const removed of [name, ...below(name)]) find().delete(removed)
      return true
    },
  }
}
