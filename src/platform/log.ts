import pino, { type Logger } from 'pino'

export type { Logger } from 'pino'

type SerializedError = ReturnType<typeof pino.stdSerializers.err> &
  Partial<Record<'params' | 'detail' | 'where' | 'internalQuery' | 'client', unknown>>

/**
 * The error of a failed statement quotes parameters and whole rows, with sealed values, names and hashes. The error of
 * a lost connection contains its client, with the key that cancels its statements. None of that may be logged.
 */
function withoutParameters(error: Error): unknown {
  const { params, detail, where, internalQuery, client, ...shown } = pino.stdSerializers.err(error) as SerializedError
  const removeParameters = (text: string) => text.replace(/\nparams: [\s\S]*?(?=\n {4}at |\ncaused by: |$)/g, '')
  return { ...shown, message: removeParameters(shown.message), stack: removeParameters(shown.stack) }
}

export const logSerializers = { err: withoutParameters }

/**
 * The log of the process on standard output: readable lines on a terminal, else lines of JSON. Keys and tokens in
 * headers are removed.
 */
export function createLog(level: string, role: string, isTerminal: boolean): Logger {
  const options = {
    level,
    base: { role },
    serializers: logSerializers,
    redact: ['req.headers.authorization', 'headers.authorization'],
  }
  // Asynchronous: a slow reader or a slow disk must not delay requests. It is flushed when the process ends.
  if (!isTerminal) return pino(options, pino.destination({ dest: 1, sync: false }))
  const pretty = { ignore: 'pid,hostname,role,organizationId,keyId', translateTime: 'HH:MM:ss.l', singleLine: true }
  return pino({ ...options, transport: { target: 'pino-pretty', options: pretty } })
}

/**
 * For an error that repeats while an outage lasts: logs the first error as `failure`, and after it the first success as
 * `recovery`.
 */
export function logFirstAndRecovery(log: Pick<Logger, 'info' | 'warn'>, failure: string, recovery: string) {
  let isFailing = false
  return {
    failed(error: unknown): void {
      if (!isFailing) log.warn({ err: error }, failure)
      isFailing = true
    },
    recovered(): void {
      if (isFailing) log.info(recovery)
      isFailing = false
    },
  }
}
