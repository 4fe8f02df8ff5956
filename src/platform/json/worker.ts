// The program of the thread that thread.ts starts: it does one task for each message.
import { parentPort } from 'node:worker_threads'
import { AppError } from '#platform/errors.ts'
import type { JsonBounds } from './bounds.ts'
import { parseJson } from './parse.ts'

/** A text to parse, or a value to write as JSON. */
export type JsonTask = { bytes: Uint8Array; bounds: JsonBounds } | { value: unknown }

export type JsonOutcome = { result: unknown } | { refused: Pick<AppError, 'code' | 'message'> } | { fault: unknown }

function outcomeOf(task: JsonTask): JsonOutcome {
  try {
    return { result: 'bytes' in task ? parseJson(task.bytes, task.bounds) : Buffer.from(JSON.stringify(task.value)) }
  } catch (error) {
    if (!(error instanceof AppError)) return { fault: error }
    return { refused: { code: error.code, message: error.message } }
  }
}

parentPort?.on('message', (task: JsonTask) => {
  const outcome = outcomeOf(task)
  const isMoved = 'result' in outcome && outcome.result instanceof Uint8Array
  parentPort?.postMessage(outcome, isMoved ? [(outcome.result as Uint8Array<ArrayBuffer>).buffer] : [])
})
