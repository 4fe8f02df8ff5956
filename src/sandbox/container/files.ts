import { addAbortSignal, Readable } from 'node:stream'
import { poll } from '#platform/poll.ts'
import type { FileStat, OpenFile, SandboxFiles } from '#sandbox/driver.ts'
import type { FilesSession } from './files-session.ts'
import type { FilesCall } from './image/files-program.ts'

/** Starts the files program of a sandbox. */
export type OpenSession = (signal: AbortSignal) => Promise<FilesSession>
type Release = (session: FilesSession) => void

const endSession: Release = (session) => session.end()

/** Maximum concurrent programs for one sandbox, because they share its memory. Further calls wait. */
const maxSessions = 16
const pauseMs = 50

/** Opens sessions of sandboxes with `open`, as many at the same time as the memory of each permits. */
export function limitSessions(
  open: (id: string, signal: AbortSignal) => Promise<FilesSession>,
): (id: string) => OpenSession {
  const counts = new Map<string, number>()
  const add = (id: string, change: 1 | -1) => {
    const count = (counts.get(id) ?? 0) + change
    if (count === 0) counts.delete(id)
    else counts.set(id, count)
    return true
  }
  return (id) => async (signal) => {
    const enter = () => (counts.get(id) ?? 0) < maxSessions && add(id, 1)
    await poll(enter, { pauseMs, timeoutMs: Number.POSITIVE_INFINITY, signal })
    try {
      const session = await open(id, signal)
      void session.over.then(() => add(id, -1))
      return session
    } catch (error) {
      add(id, -1)
      throw error
    }
  }
}

/** Calls `use` with a session, which ends when `use` fails or the signal is aborted. */
async function withSession<T>(
  open: OpenSession,
  signal: AbortSignal,
  use: (session: FilesSession) => Promise<T>,
): Promise<T> {
  signal.throwIfAborted()
  const session = await open(signal)
  const onAbort = () => session.end()
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    signal.throwIfAborted()
    return await use(session)
  } catch (error) {
    session.end()
    signal.throwIfAborted()
    throw error
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** Carries out one call in a session, with content for a write, and returns its result. */
export const askProgram = (
  open: OpenSession,
  call: FilesCall,
  signal: AbortSignal,
  { content, release = endSession }: { content?: AsyncIterable<Buffer>; release?: Release } = {},
): Promise<unknown> =>
  withSession(open, signal, async (session) => {
    const result = await session.ask(call, content)
    release(session)
    return result
  })

type StoredStat = Omit<FileStat, 'modifiedAt'> & { modifiedAt: string }

const statOf = (stat: StoredStat): FileStat => ({ ...stat, modifiedAt: new Date(stat.modifiedAt) })

/** The files of a sandbox, accessed by the files program. Each call opens its own session with `open`. */
export function filesBy(open: OpenSession, release: Release = endSession): SandboxFiles {
  const ask = (call: FilesCall, signal: AbortSignal, content?: AsyncIterable<Buffer>) =>
    askProgram(open, call, signal, { release, ...(content && { content }) })

  return {
    read: (path, { maxBytes }, signal) =>
      withSession(open, signal, async (session) => {
        const opened = (await session.ask({ call: 'read', path, maxBytes })) as {
          size: number
          modifiedAt: number
        } | null
        if (opened) return openFile(session, opened, signal, () => release(session))
        release(session)
        return null
      }),
    async list(path, { maxEntries }, signal) {
      const listed = (await ask({ call: 'list', path, maxEntries }, signal)) as {
        entries: StoredStat[]
        isWhole: boolean
      }
      return { entries: listed.entries.map(statOf), isWhole: listed.isWhole }
    },
    async stat(path, signal) {
      const stat = (await ask({ call: 'stat', path }, signal)) as StoredStat | null
      return stat && statOf(stat)
    },
    async write(path, content, options, signal) {
      const source = Buffer.isBuffer(content) ? Readable.from([content]) : content
      signal.throwIfAborted()
      try {
        await ask({ call: 'write', path, ...options }, signal, addAbortSignal(signal, source))
      } finally {
        source.destroy()
      }
    },
    async mkdir(path, signal) {
      await ask({ call: 'mkdir', path }, signal)
    },
    async move(from, to, { overwrite }, signal) {
      await ask({ call: 'move', from, to, overwrite }, signal)
    },
    async remove(path, { recursive }, signal) {
      return (await ask({ call: 'remove', path, recursive }, signal)) === true
    },
  }
}

/**
 * Calls `use` with files whose calls share one session. A failed call ends the program, so the next call opens another
 * session.
 */
export async function filesBatch<T>(open: OpenSession, use: (files: SandboxFiles) => Promise<T>): Promise<T> {
  let session: FilesSession | null = null
  const shared: OpenSession = async (signal) => {
    if (session === null || session.isOver) session = await open(signal)
    return session
  }
  try {
    return await use(filesBy(shared, () => {}))
  } finally {
    ;(session as FilesSession | null)?.end()
  }
}

/** An open file of a session, which takes no other call until the file is read. */
function openFile(
  session: FilesSession,
  { size, modifiedAt }: { size: number; modifiedAt: number },
  signal: AbortSignal,
  release: () => void,
): OpenFile {
  const onAbort = () => session.end()
  signal.addEventListener('abort', onAbort, { once: true })
  const done = () => {
    signal.removeEventListener('abort', onAbort)
    release()
  }
  return {
    size,
    modifiedAt: new Date(modifiedAt),
    content(range = { start: 0, end: size }) {
      const content = Readable.from(session.content(range), { objectMode: false })
      content.once('close', () => {
        if (!content.readableEnded) session.end() // the program is still sending the rest
        done()
      })
      return addAbortSignal(signal, content)
    },
    async close() {
      session.end()
      done()
    },
  }
}
