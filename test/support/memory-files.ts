import { posix } from 'node:path'
import { Readable } from 'node:stream'
import { type FileStat, type SandboxFiles, SandboxPathError } from '../../src/sandbox/driver.ts'

export type MemoryFolder = Map<string, { content: Buffer; mode: number }>

/** The files of a fake sandbox, by their whole paths. A folder is there as long as it has a file. */
export function memoryFiles(find: () => MemoryFolder): SandboxFiles {
  const confined = (path: string): string => {
    const normal = posix.normalize(path).replace(/\/$/, '')
    if (/^(\.\.)?(\/|$)/.test(normal) || path.includes('\0')) throw new SandboxPathError(`${path} is outside`)
    return normal
  }
  const isFolder = (path: string) => path === '.' || [...find().keys()].some((name) => name.startsWith(`${path}/`))
  const statOf = (path: string): FileStat | null => {
    const file = find().get(path)
    const seen = { name: posix.basename(path), modifiedAt: new Date(0) }
    if (file) return { ...seen, kind: 'file', size: file.content.length, mode: file.mode }
    return isFolder(path) ? { ...seen, kind: 'directory', size: 0, mode: 0o700 } : null
  }
  const throughFolders = (path: string): string => {
    for (let folder = posix.dirname(path); folder !== '.'; folder = posix.dirname(folder)) {
      if (find().has(folder)) throw new SandboxPathError(`${path} leads through a file`)
    }
    return path
  }
  return {
    async list(path, signal) {
      signal.throwIfAborted()
      const folder = confined(path)
      if (!isFolder(folder)) throw new SandboxPathError(`${path} is no folder`)
      const below = [...find().keys()]
        .map((name) => posix.relative(folder, name))
        .filter((name) => !name.startsWith('..'))
      const names = new Set(below.map((name) => name.split('/')[0] ?? ''))
      return [...names].sort().flatMap((name) => statOf(posix.join(folder, name)) ?? [])
    },
    async stat(path, signal) {
      signal.throwIfAborted()
      return statOf(throughFolders(confined(path)))
    },
    async read(path, { maxBytes }, signal) {
      signal.throwIfAborted()
      const name = throughFolders(confined(path))
      if (isFolder(name)) throw new SandboxPathError(`${path} is a folder`)
      const content = find().get(name)?.content ?? null
      if (content && content.length > maxBytes) throw new SandboxPathError(`${path} is too large`)
      return content
    },
    async write(path, content, { mode }, signal) {
      signal.throwIfAborted()
      const name = throughFolders(confined(path))
      if (isFolder(name)) throw new SandboxPathError(`${path} is a folder`)
      const bytes = content instanceof Readable ? Buffer.concat(await content.toArray({ signal })) : content
      find().set(name, { content: bytes, mode })
    },
    async move(from, to, signal) {
      signal.throwIfAborted()
      const [source, target] = [throughFolders(confined(from)), throughFolders(confined(to))]
      if (isFolder(target)) throw new SandboxPathError(`${to} is a folder`)
      const moved = [...find()].filter(([name]) => name === source || name.startsWith(`${source}/`))
      if (moved.length === 0) throw new SandboxPathError(`${from} is not there`)
      for (const [name, file] of moved) {
        find().delete(name)
        find().set(target + name.slice(source.length), file)
      }
    },
    async remove(path, signal) {
      signal.throwIfAborted()
      const gone = confined(path)
      if (gone === '.') throw new SandboxPathError('the whole folder cannot be removed')
      for (const name of [...find().keys()]) if (name === gone || name.startsWith(`${gone}/`)) find().delete(name)
    },
  }
}
