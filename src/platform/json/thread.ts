import { Worker } from 'node:worker_threads'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import type { JsonBounds } from './bounds.ts'
import { isLongerThan } from './length.ts'
import { parseJson } from './parse.ts'
import type { JsonOutcome, JsonTask } from './worker.ts'

/** Up to here a text is read or written within a few ms. A larger one would hold the event loop as long as many. */
export const largeBytes = 1024 * 1024
const maxWaiting = 64
/** Many times what a text of some ten MiB takes on a busy machine. */
const taskTimeoutMs = 30_000
/** The thread ends when it has had nothing to do for this long: it takes some ten MiB. */
const idleMs = 30_000

interface WaitingTask {
  task: JsonTask
  resolve(result: unknown): void
  reject(error: unknown): void
}

const waiting: WaitingTask[] = []
let running: WaitingTask | null = null
let worker: Worker | null = null
let deadline: NodeJS.Timeout | undefined

/** Ends the running task, and begins the next one. */
function settle(outcome: JsonOutcome): void {
  const settled = running
  running = null
  if (!settled) return
  if ('result' in outcome) settled.resolve(outcome.result)
  else if ('refused' in outcome) settled.reject(new AppError(outcome.refused.code, outcome.refused.message))
  else settled.reject(outcome.fault)
  runNext()
}

function startWorker(): Worker {
  const started = new Worker(new URL('./worker.ts', import.meta.url), {
    env: {}, // it needs no secret
    execArgv: [],
    resourceLimits: { maxOldGenerationSizeMb: 512 },
  })
  const fail = (fault: unknown) => {
    if (worker === started) endWorker(fault)
  }
  started.on('message', (outcome: JsonOutcome) => {
    if (worker === started) settle(outcome)
  })
  started.on('messageerror', fail)
  started.on('error', fail)
  started.on('exit', () => fail(new Error('the thread for JSON ended')))
  return started
}

/** Ends the thread, and its task as failed. The next task has another thread. */
function endWorker(fault: unknown): void {
  void worker?.terminate()
  worker = null
  settle({ fault })
}

/** Ends the thread when its task or its rest takes too long. */
function endIn(ms: number): void {
  clearTimeout(deadline)
  deadline = setTimeout(() => endWorker(new Error('the thread for JSON took too long')), ms).unref()
}

function runNext(): void {
  running = waiting.shift() ?? null
  if (!running) {
    worker?.unref() // it does not keep a process that ends
    endIn(idleMs)
    return
  }
  const { task } = running
  worker ??= startWorker()
  worker.ref()
  endIn(taskTimeoutMs)
  try {
    // Bytes that are all of their memory are moved, and others copied.
    const isMoved = 'bytes' in task && task.bytes.byteLength === task.bytes.buffer.byteLength
    worker.postMessage(task, isMoved ? [task.bytes.buffer as ArrayBuffer] : [])
  } catch (fault) {
    settle({ fault })
  }
}

/** Runs a task in the thread, after those before it. Throws AppError `overloaded` when too many wait. */
function run(task: JsonTask): Promise<unknown> {
  if (waiting.length >= maxWaiting) {
    throw new AppError('overloaded', texts.tooManyLargeBodies, { retryAfterSeconds: 1 })
  }
  const { promise, resolve, reject } = Promise.withResolvers<unknown>()
  waiting.push({ task, resolve, reject })
  if (!running) runNext()
  return promise
}

/**
 * Parses JSON as `parseJson` does. A large text is parsed in a thread, one after the other, so that the event loop
 * stands still no longer than it takes to copy the value; the bytes cannot be used afterwards. Also throws AppError
 * `overloaded` when too many large texts wait.
 */
export async function parseJsonBytes(bytes: Uint8Array, bounds: JsonBounds): Promise<unknown> {
  return bytes.byteLength <= largeBytes ? parseJson(bytes, bounds) : run({ bytes, bounds })
}

/** Writes a value as JSON; one with long texts in the thread, as bytes. Throws AppError `overloaded` as above. */
export async function writeJson(value: unknown): Promise<string | Uint8Array> {
  return isLongerThan(value, largeBytes) ? (run({ value }) as Promise<Uint8Array>) : JSON.stringify(value)
}
