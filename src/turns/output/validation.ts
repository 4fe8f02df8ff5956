import { Piscina } from 'piscina'
import { AppError } from '#errors/app-error.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { type JsonFormat, schemaOf } from './format.ts'
import type { Checked } from './worker.ts'

/** One thread: schemas come from clients, and some take as long as they may. It ends after an idle time. */
const thread = new Piscina({
  filename: new URL('./worker.ts', import.meta.url).href,
  minThreads: 0,
  maxThreads: 1,
  idleTimeout: 30_000,
  env: {}, // it needs no secret
  execArgv: [],
  resourceLimits: { maxOldGenerationSizeMb: 128 },
  recordTiming: false,
})
// An idle thread that fails is replaced. Without a listener the process would end.
thread.on('error', () => {})

/** The last task of each organization. */
const lastOf = new Map<string, Promise<unknown>>()

/** Runs a task after the earlier ones of its organization, so that others wait for one of them at most. */
async function run<Result>(organizationId: string, name: 'judge' | 'check', task: object, signal: AbortSignal) {
  const before = lastOf.get(organizationId) ?? Promise.resolve()
  const result = before.then((): Promise<Result> => {
    signal.throwIfAborted()
    return thread.run(task, { name })
  })
  const settled = result.catch(() => {})
  lastOf.set(organizationId, settled)
  void settled.then(() => {
    if (lastOf.get(organizationId) === settled) lastOf.delete(organizationId)
  })
  return result
}

const isOutOfMemory = (error: unknown) =>
  error instanceof Error && 'code' in error && error.code === 'ERR_WORKER_OUT_OF_MEMORY'

/**
 * Returns what is wrong with the schema of a format, such as `is not valid: …`; null for a valid one. Throws the reason
 * of the signal once it is aborted.
 */
export async function schemaFault(
  organizationId: string,
  format: JsonFormat,
  signal: AbortSignal,
): Promise<string | null> {
  try {
    return await run<string | null>(organizationId, 'judge', schemaOf(format), signal)
  } catch (error) {
    if (isOutOfMemory(error)) return 'is too complex'
    throw error
  }
}

/**
 * Checks an answer against its format. Returns its JSON, without text and code fences around it, or what is wrong with
 * it. Throws AppError `invalid_output` when the check takes too long, and the reason of the signal once it is aborted.
 */
export async function checkOutput(
  organizationId: string,
  format: JsonFormat,
  answer: string,
  signal: AbortSignal,
): Promise<{ text: string } | { fault: string }> {
  const checked = await run<Checked>(organizationId, 'check', { schema: schemaOf(format), answer }, signal).catch(
    (error: unknown): Checked => {
      if (isOutOfMemory(error)) return { isTooCostly: true }
      throw error
    },
  )
  if (!('isTooCostly' in checked)) return checked
  throw new AppError('invalid_output', errorTexts.uncheckedOutput, { doNotRetry: true })
}
