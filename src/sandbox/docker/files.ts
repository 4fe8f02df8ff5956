import { addAbortSignal, Readable } from 'node:stream'
import type { FileStat, OpenFile, SandboxFiles } from '#sandbox/driver.ts'
import type { FilesSession } from './files-session.ts'
import type { FilesCall } from './image/files-program.ts'

/** The number of calls on the files of one sandbox at the same time; others wait. */
const maxSessions = 16
/** The time for which an idle session waits for the next call. */
const idleMs = 10_000

/** The sessions of the files program of one sandbox. */
export interface FilesPool {
  /** Lends a session to the caller until `give`. Throws the errors of opening a session, or the signal's reason. */
  take(signal: AbortSignal): Promise<FilesSession>
  give(session: FilesSession): void
  /** Ends the idle sessions. */
  clear(): void
}

/**
 * Keeps sessions for a while after their use, since opening a session takes longer than most calls. Calls `onEmpty`
 * when no session is left.
 */
export function filesPool(open: (signal: AbortSignal) => Promise<FilesSession>, onEmpty: () => void): FilesPool {
  const idle = new Map<FilesSession, NodeJS.Timeout>()
  const waiting: PromiseWithResolvers<void>[] = []
  let taken = 0

  function leave(session: FilesSession): void {
    clearTimeout(idle.get(session))
    idle.delete(session)
  }

  async function wait(signal: AbortSignal): Promise<void> {
    const turn = Promise.withResolvers<void>()
    const onAbort = () => {
      const index = waiting.indexOf(turn)
      if (index >= 0) waiting.splice(index, 1)
      turn.reject(signal.reason)
    }
    waiting.push(turn)
    signal.addEventListener('abort', onAbort, { once: true })
    await turn.promise.finally(() => signal.removeEventListener('abort', onAbort))
  }

  /** Passes the right to a session on to the call that has waited longest. */
  function release(): void {
    const next = waiting.shift()
    if (next) next.resolve()
    else taken -= 1
    reportEmpty()
  }

  function reportEmpty(): void {
    if (taken === 0 && idle.size === 0) onEmpty()
  }

  return {
    async take(signal) {
      if (taken < maxSessions) taken += 1
      else await wait(signal)
      for (const session of [...idle.keys()].reverse()) {
        leave(session)
        if (!session.isOver) return session
      }
      try {
        const session = await open(signal)
        void session.over.then(() => {
          leave(session)
          reportEmpty()
        })
        return session
      } catch (error) {
        release()
        throw error
      }
    },
    give(session) {
      if (!session.isOver) idle.set(session, setTimeout(() => session.end(), idleMs).unref())
      release()
    },
    clear() {
      for (const session of idle.keys()) session.end()
    },
  }
}

type StoredStat = Omit<FileStat, 'modifiedAt'> & { modifiedAt: string }

const statOf = (stat: StoredStat): FileStat => ({ ...stat, modifiedAt: new Date(stat.modifiedAt) })

/** The files of a sandbox, accessed by the files program in a container beside it. */
export function filesBy(pool: FilesPool): SandboxFiles {
  /** Takes a session for a call, and ends the session when the call fails or is aborted. */
  async function withSession<T>(signal: AbortSignal, use: (session: FilesSession) => Promise<T>): Promise<T> {
    signal.throwIfAborted()
    const session = await pool.take(signal)
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
      pool.give(session)
    }
  }

  const ask = (call: FilesCall, signal: AbortSignal, content?: AsyncIterable<Buffer>): Promise<unknown> =>
    withSession(signal, async (session) => {
      const answer = await session.ask(call, content)
      return 'result' in answer ? answer.result : null
    })

  async function read(path: string, maxBytes: number, signal: AbortSignal): Promise<OpenFile | null> {
    signal.throwIfAborted()
    const session = await pool.take(signal)
    let isGiven = false
    const give = () => {
      if (isGiven) return
      isGiven = true
      signal.removeEventListener('abort', onAbort)
      pool.give(session)
    }
    const onAbort = () => {
      session.end()
      give()
    }
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      const answer = await session.ask({ call: 'read', path, maxBytes })
      signal.throwIfAborted()
      if ('opened' in answer && answer.opened) return openFile(session, answer.opened, signal, give)
      give()
      return null
    } catch (error) {
      session.end()
      give()
      signal.throwIfAborted()
      throw error
    }
  }

  return {
    read: (path, { maxBytes }, signal) => read(path, maxBytes, signal),
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

/** A file that a session has opened. No other call uses the session until the file is read, closed or destroyed. */
function openFile(
  session: FilesSession,
  { size, modifiedAt }: { size: number; modifiedAt: number },
  signal: AbortSignal,
  give: () => void,
): OpenFile {
  let isUsed = false
  return {
    size,
    modifiedAt: new Date(modifiedAt),
    content(range = { start: 0, end: size }) {
      isUsed = true
      const content = Readable.from(session.content(range), { objectMode: false })
      content.once('close', () => {
        if (!content.readableEnded) session.end() // the program still sends the rest
        give()
      })
      return addAbortSignal(signal, content)
    },
    async close() {
      if (isUsed) return
      isUsed = true
      try {
        for await (const _ of session.content(null));
      } finally {
        give()
      }
    },
  }
}
