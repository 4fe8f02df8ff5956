import pino, { type Logger } from 'pino'

export type { Logger } from 'pino'

type SerializedError = ReturnType<typeof pino.stdSerializers.err> &
  Partial<Record<'params' | 'detail' | 'where' | 'internalQuery' | 'client', unknown>>

/**
 * A failed statement's error quotes its parameters and whole rows: sealed values, names and hashes, not for a log. That of
 * a lost connection holds its whole client, with the key that cancels its statements.
 */
function withoutParameters(error: Error): unknown {
  const { params, detail, where, internalQuery, client, ...shown } = pino.stdSerializers.err(error) as SerializedError
  const cut = (text: string) => text.replace(/\nparams: [\s\S]*?(?=\n {4}at |\ncaused by: |$)/g, '')
  return { ...shown, message: cut(shown.message), stack: cut(shown.stack) }
}

export const logSerializers = { err: withoutParameters }

/**
 * The process's log: JSON lines on standard output, readable lines when that is a terminal. Keys and tokens in headers
 * are taken out; bodies are never logged.
 */
export function createLog(level: string, role: string, isTerminal: boolean): Logger {
  const options = {
    level,
    base: { role },
    serializers: logSerializers,
    redact: ['req.headers.authorization', 'headers.authorization'],
  }
  // Asynchronous: a slow reader of the log, or a slow disk, must not hold up every request. It is flushed at the end.
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
