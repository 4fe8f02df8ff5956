import { Piscina } from 'piscina'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import type { JsonBounds } from './bounds.ts'
import { putBackLongTexts } from './long-texts.ts'
import { parseJson } from './parse.ts'
import type { Parsed, ParseTask } from './worker.ts'

/** Up to here a text is read within a few ms. A larger one would hold the event loop as long as many. */
export const largeBytes = 1024 * 1024
const maxWaiting = 64
/** Many times what a text of some ten MiB takes on a busy machine, with the wait for those before it. */
const taskTimeoutMs = 30_000

/** One thread, which ends when it has had nothing to do for a while: it takes some ten MiB. */
const thread = new Piscina({
  filename: new URL('./worker.ts', import.meta.url).href,
  minThreads: 0,
  maxThreads: 1,
  idleTimeout: 30_000,
  env: {}, // it needs no secret
  execArgv: [],
  resourceLimits: { maxOldGenerationSizeMb: 512 },
  recordTiming: false,
})
// A thread that fails while it has nothing to do is replaced. Without a listener the process would end.
thread.on('error', () => {})

const overloaded = () => new AppError('overloaded', texts.tooManyLargeBodies, { retryAfterSeconds: 1 })

/** Runs a task in the thread, after the tasks before it. Throws AppError `overloaded` when that takes too long. */
async function run(task: ParseTask): Promise<Parsed> {
  if (thread.queueSize >= maxWaiting) throw overloaded()
  const signal = AbortSignal.timeout(taskTimeoutMs)
  try {
    return (await thread.run(task, {
      name: 'parse',
      transferList: [task.bytes.buffer as ArrayBuffer],
      signal,
    })) as Parsed
  } catch (error) {
    throw signal.aborted ? overloaded() : error
  }
}

async function parseInThread(task: ParseTask): Promise<unknown> {
  const parsed = await run(task)
  if ('refused' in parsed) throw new AppError(parsed.refused.code, parsed.refused.message)
  return 'bytes' in parsed ? putBackLongTexts(parsed) : parsed.value
}

/**
 * Parses JSON as `parseJson` does. A large text is parsed in a thread, one after the other, so that the event loop
 * stands still no longer than it takes to copy the value. The memory of its bytes is moved there: nothing in it can be
 * used afterwards. Also throws AppError `overloaded` when too many large texts wait.
 */
export const parseJsonBytes = async (bytes: Uint8Array, bounds: JsonBounds): Promise<unknown> =>
  bytes.byteLength <= largeBytes ? parseJson(bytes, bounds) : parseInThread({ bytes, bounds })
