import { addAbortSignal, Readable } from 'node:stream'
import {
  type Activity,
  type FileStat,
  type Listed,
  noKeptLimits,
  type Observation,
  type PathFault,
  SandboxAbsentError,
  SandboxCapacityError,
  type SandboxDriver,
  type SandboxFiles,
  SandboxPathError,
  SandboxUnavailableError,
} from '#sandbox/driver.ts'

/** A call that the platform has not answered by then has failed; what became of it is unknown. */
const callTimeoutMs = 10_000
/** Its reader takes its time. */
const listTimeoutMs = 60_000

interface Asked {
  method?: 'GET' | 'PUT' | 'POST' | 'DELETE'
  body?: unknown
}

/**
 * The driver of the fake cloud at `url`: what a vendor's would be. It reports what the platform answers and repeats
 * nothing: a 404 is an absent sandbox, a 507 no capacity, everything else an unavailable platform. `caller` is what the
 * platform knows this process by.
 */
export function openCloudDriver(url: string, caller: string): SandboxDriver {
  const send = (path: string, { method = 'GET', body }: Asked, signal: AbortSignal, timeoutMs = callTimeoutMs) =>
    fetch(`${url}/sandboxes${path}`, {
      method,
      headers: { 'x-caller': caller, 'content-type': 'application/json' },
      ...(method !== 'GET' && { body: JSON.stringify(body ?? {}) }),
      signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
    })

  async function ask(path: string, asked: Asked, signal: AbortSignal) {
    const response = await send(path, asked, signal)
    return { status: response.status, answer: (await response.json()) as { error?: string; fault?: PathFault } }
  }

  /** The list has a line of JSON for each sandbox: whoever reads it need not have all of it in its memory. */
  async function* list(signal: AbortSignal): AsyncGenerator<Listed> {
    signal.throwIfAborted()
    try {
      const { status, body } = await send('', {}, signal, listTimeoutMs)
      if (status !== 200 || !body) throw new Error(`the platform answered ${status}`)
      let begun = ''
      for await (const text of body.pipeThrough(new TextDecoderStream())) {
        const lines = (begun + text).split('\n')
        begun = lines.pop() ?? ''
        for (const line of lines) {
          const { id, state, endpoint } = JSON.parse(line) as Pick<Observation, 'state' | 'endpoint'> & { id: string }
          yield { id, state, ...(endpoint && { endpoint }) }
        }
      }
    } catch (error) {
      signal.throwIfAborted()
      throw new SandboxUnavailableError(error)
    }
  }

  /**
   * Throws the signal's reason, SandboxAbsentError, SandboxCapacityError, SandboxPathError, or SandboxUnavailableError.
   */
  async function call(path: string, asked: Asked, signal: AbortSignal): Promise<unknown> {
    signal.throwIfAborted()
    const { status, answer } = await ask(path, asked, signal).catch((error: unknown) => {
      signal.throwIfAborted()
      throw new SandboxUnavailableError(error)
    })
    if (status === 200) return answer
    const { error = '', fault } = answer
    if (status === 404) throw new SandboxAbsentError(error)
    if (status === 507) throw new SandboxCapacityError('The platform has no room for another sandbox.')
    if (fault) throw new SandboxPathError(fault, error)
    throw new SandboxUnavailableError(new Error(`the platform answered ${status}`))
  }

  const unlessAbsent = (error: unknown): void => {
    if (!(error instanceof SandboxAbsentError)) throw error
  }

  return {
    name: 'cloud',
    isolation: 'Nothing runs.',
    prepare: async (_release, _progress, signal) => signal.throwIfAborted(),
    prepareChannel: async (_release, _channel, _progress, signal) => signal.throwIfAborted(),
    create: async ({ id, labels }, signal) => void (await call(`/${id}`, { method: 'PUT', body: { labels } }, signal)),
    start: async (id, signal) => void (await call(`/${id}/start`, { method: 'POST' }, signal)),
    stop: async (id, { graceMs }, signal) => {
      await call(`/${id}/stop`, { method: 'POST', body: { graceMs } }, signal).catch(unlessAbsent)
    },
    destroy: async (id, signal) => {
      await call(`/${id}`, { method: 'DELETE' }, signal).catch(unlessAbsent)
    },
    observe: async (id, signal) => {
      try {
        const { state, sandboxId, endpoint, paths, exit } = (await call(`/${id}`, {}, signal)) as Observation
        return { state, sandboxId, endpoint, paths, ...(exit && { exit }) }
      } catch (error) {
        unlessAbsent(error)
        return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
      }
    },
    activity: async (id, signal) => {
      try {
        return ((await call(`/${id}/activity`, {}, signal)) as { activity: Activity | null }).activity
      } catch (error) {
        unlessAbsent(error)
        return null
      }
    },
    list,
    exec: async (id, argv, _options, signal) =>
      (await call(`/${id}/exec`, { method: 'POST', body: { argv } }, signal)) as Awaited<
        ReturnType<SandboxDriver['exec']>
      >,
    // The platform keeps no position: whoever reads on gets nothing new.
    readLog: async (id, { lines, after }, signal) => {
      const { text } = (await call(`/${id}/logs`, {}, signal)) as { text: string }
      const all = text.split('\n').slice(0, -1)
      const shown = after === undefined ? all.slice(-lines) : []
      return { lines: shown.map((line) => ({ text: line, isCut: false })), rest: null, position: '', hasGap: false }
    },
    limit: async (_id, _resources, signal) => {
      signal.throwIfAborted()
      return noKeptLimits
    },
    diskUse: async (_ids, signal) => {
      signal.throwIfAborted()
      return new Map()
    },
    memoryUse: async (_id, signal) => {
      signal.throwIfAborted()
      return null
    },
    measure: async (_id, signal) => {
      signal.throwIfAborted()
      return {
        since: null,
        memoryBytes: null,
        memoryLimitBytes: null,
        cpuSeconds: null,
        processes: null,
        diskBytes: null,
      }
    },
    files: (id) => filesOf((method, body, signal) => call(`/${id}/files/${method}`, { method: 'POST', body }, signal)),
  }
}

type FileCall = (method: keyof SandboxFiles, body: object, signal: AbortSignal) => Promise<unknown>

type Received = FileStat & { modifiedAt: string }
const withDate = (stat: Received): FileStat => ({ ...stat, modifiedAt: new Date(stat.modifiedAt) })

function filesOf(call: FileCall): SandboxFiles {
  return {
    async list(path, options, signal) {
      const { entries, isWhole } = (await call('list', { path, options }, signal)) as {
        entries: Received[]
        isWhole: boolean
      }
      return { entries: entries.map(withDate), isWhole }
    },
    async stat(path, signal) {
      const { stat } = (await call('stat', { path }, signal)) as { stat: Received | null }
      return stat && withDate(stat)
    },
    async read(path, options, signal) {
      const { file } = (await call('read', { path, options }, signal)) as {
        file: { size: number; modifiedAt: string; content: string } | null
      }
      if (!file) return null
      const content = Buffer.from(file.content, 'base64')
      return {
        size: file.size,
        modifiedAt: new Date(file.modifiedAt),
        content: ({ start, end } = { start: 0, end: content.length }) =>
          addAbortSignal(signal, Readable.from([content.subarray(start, end)])),
        close: async () => {},
      }
    },
    async write(path, content, { maxBytes = Number.POSITIVE_INFINITY, ...options }, signal) {
      signal.throwIfAborted()
      const chunks: Buffer[] = []
      let size = 0
      try {
        const source = Buffer.isBuffer(content) ? Readable.from([content]) : content
        for await (const chunk of addAbortSignal(signal, source)) {
          size += chunk.length
          if (size > maxBytes) throw new SandboxPathError('too_large', `${JSON.stringify(path)} is too_large`)
          chunks.push(chunk)
        }
      } finally {
        signal.throwIfAborted()
      }
      await call('write', { path, options, content: Buffer.concat(chunks).toString('base64') }, signal)
    },
    mkdir: async (path, signal) => void (await call('mkdir', { path }, signal)),
    move: async (from, to, options, signal) => void (await call('move', { path: from, to, options }, signal)),
    remove: async (path, options, signal) => {
      const { removed } = (await call('remove', { path, options }, signal)) as { removed: boolean }
      return removed
    },
  }
}
