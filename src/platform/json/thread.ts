import { Piscina } from 'piscina'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { JsonBounds } from './bounds.ts'
import { isLongerThan } from './length.ts'
import { parseJson } from './parse.ts'
import type { Parsed, ParseTask } from './worker.ts'

/** JSON up to this size is parsed and serialized within a few ms. Larger JSON is left to a thread. */
export const largeBytes = 1024 * 1024
const maxWaiting = 64
/** Enough for some ten MiB on a busy machine, including the wait for earlier tasks. */
const taskTimeoutMs = 30_000

/** One thread, which uses some ten MiB and ends after an idle time. */
const thread = new Piscina({
  filename: new URL('./worker.ts', import.meta.url).href,
  minThreads: 0,
  maxThreads: 1,
  idleTimeout: 30_000,
  env: {}, // it needs no secret
  execArgv: [],
  resourceLimits: { maxOldGenerationSizeMb: 256 },
  recordTiming: false,
})
// An idle thread that fails is replaced. Without a listener the process would end.
thread.on('error', () => {})

const overloaded = () => new AppError('overloaded', texts.tooManyLargeBodies, { retryAfterSeconds: 1 })

/** Runs a task in the thread, after earlier tasks. Throws AppError `overloaded` when that takes too long. */
async function run(name: 'parse' | 'write', task: unknown, transferList: ArrayBuffer[] = []): Promise<unknown> {
  if (thread.queueSize >= maxWaiting) throw overloaded()
  const signal = AbortSignal.timeout(taskTimeoutMs)
  try {
    return await thread.run(task, { name, transferList, signal })
  } catch (error) {
    throw signal.aborted ? overloaded() : error
  }
}

async function parseInThread(task: ParseTask): Promise<unknown> {
  const parsed = (await run('parse', task, [task.bytes.buffer as ArrayBuffer])) as Parsed
  if ('refused' in parsed) throw new AppError(parsed.refused.code, parsed.refused.message)
  return parsed.value
}

/**
 * Parses JSON like `parseJson`. Large JSON is parsed in a thread, one text after the other, so that the event loop
 * waits only for the copy of the value. Its memory moves to the thread: the caller cannot use it afterwards. Also
 * throws AppError `overloaded` when too many large texts wait.
 */
export const parseJsonBytes = async (bytes: Uint8Array, bounds: JsonBounds): Promise<unknown> =>
  bytes.byteLength <= largeBytes ? parseJson(bytes, bounds) : parseInThread({ bytes, bounds })

/** Serializes a value as JSON; a large one in the same thread. Throws AppError `overloaded` when too many wait. */
export const writeJson = async (value: unknown): Promise<string | Uint8Array> =>
  isLongerThan(value, largeBytes) ? ((await run('write', value)) as Uint8Array) : JSON.stringify(value)
