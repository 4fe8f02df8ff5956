import { hostname } from 'node:os'
import pino, { type LogFn, type Logger } from 'pino'

export type { Logger } from 'pino'

type SerializedError = ReturnType<typeof pino.stdSerializers.err> &
  Partial<Record<'params' | 'detail' | 'where' | 'internalQuery' | 'client', unknown>>

/** Maximum characters of a foreign text, such as an agent's or a provider's, in a line of the log. */
const maxForeignCharacters = 300

/** Shortens a foreign text for the log. */
export const shortened = (text: string): string =>
  text.length > maxForeignCharacters ? `${text.slice(0, maxForeignCharacters)}…` : text

/**
 * Whether an error, or one of its causes, is that of a connection: its message is sufficient, its stack is Node's own.
 */
function isOfConnection(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if ('syscall' in cause && ['connect', 'getaddrinfo'].includes(String(cause.syscall))) return true
  }
  return false
}

/**
 * The error of a failed statement quotes parameters and whole rows, with sealed values, names and hashes. The error of
 * a lost connection contains its client, with the key that cancels its statements. Neither may be logged.
 */
function shownError(error: Error): unknown {
  const { params, detail, where, internalQuery, client, stack, ...shown } = pino.stdSerializers.err(
    error,
  ) as SerializedError
  const removeParameters = (text: string) => text.replace(/\nparams: [\s\S]*?(?=\n {4}at |\ncaused by: |$)/g, '')
  const message = removeParameters(shown.message)
  return isOfConnection(error) ? { ...shown, message } : { ...shown, message, stack: removeParameters(stack) }
}

export const logSerializers = { err: shownError }

const secretHeaders = ['authorization', 'x-signup-token', 'x-api-key', 'x-goog-api-key']

/** The fields with secrets that libraries log, also at the level `trace`. */
export const redactedFields = ['headers', 'req.headers', 'busboyOptions.headers'].flatMap((headers) =>
  secretHeaders.map((name) => `${headers}["${name}"]`),
)

/** Fields that a terminal shows as a part of the message. pino-pretty omits missing ones. */
const messageOnTerminal =
  '{msg}{if method} {method} {route} {status}{end}{if instanceId} {instanceId}{end}{if step} {step}{end}' +
  '{if desiredState}: {desiredState}{end}{if ms}, {ms} ms{end}'
const hiddenFields = [
  ...['method', 'route', 'status', 'instanceId', 'step', 'desiredState', 'ms'],
  // Fields that are omitted on a terminal. The start ends with a summary that has addresses and folders.
  ...['pid', 'host', 'role', 'version', 'commit', 'node', 'organizationId', 'keyId', 'output', 'requestId', 'region'],
  ...['generation', 'phase', 'url', 'address', 'port', 'dataDir', 'folder'],
].join(',')

/**
 * On a terminal the next line replaces these: a line with `progress: true`, and a finished step of an instance, so that
 * a starting agent takes one line.
 */
function showProgress(this: Logger, args: Parameters<LogFn>, method: LogFn): void {
  const [fields, text] = args as unknown[]
  const shown = typeof fields === 'object' && fields !== null ? fields : {}
  const isStep = text === 'step done' && 'step' in shown
  const passing = isStep ? `instance ${this.bindings().instanceId}: ${shown.step} done` : 'progress' in shown && text
  if (passing === false) method.apply(this, args)
  else process.stderr.write(`\x1b[2K${passing}\r`)
}

/**
 * The log of the process on standard output: for people on a terminal, JSON elsewhere. Keys and tokens in headers are
 * removed.
 */
export function createLog(
  { LOG_LEVEL }: { LOG_LEVEL: pino.LevelWithSilent },
  role: string,
  isTerminal = process.stdout.isTTY,
): Logger {
  const options = {
    level: LOG_LEVEL,
    base: { role, host: hostname(), pid: process.pid },
    serializers: logSerializers,
    redact: redactedFields,
  }
  if (!isTerminal) {
    const formatters = { level: (level: string) => ({ level }) }
    // Asynchronous: a slow reader or a slow disk must not delay requests. It is flushed when the process ends.
    const destination = pino.destination({ dest: 1, sync: false })
    return pino({ ...options, formatters, timestamp: pino.stdTimeFunctions.isoTime }, destination)
  }
  const pretty = {
    messageFormat: messageOnTerminal,
    ignore: hiddenFields,
    translateTime: 'HH:MM:ss.l',
    singleLine: true,
    colorize: true,
  }
  return pino({ ...options, hooks: { logMethod: showProgress }, transport: { target: 'pino-pretty', options: pretty } })
}

/** Logs lines of progress. On a terminal the next line replaces a temporary one. */
export const logProgress =
  (log: Pick<Logger, 'info'>) =>
  (line: string, isPassing = false): void =>
    log.info(isPassing ? { progress: true } : {}, line)

/**
 * For an error that repeats during an outage: logs the first error as `failure`, and the next success as `recovery`.
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
