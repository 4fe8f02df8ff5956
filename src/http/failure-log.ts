import type { FastifyBaseLogger } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import type { ErrorCode, ErrorKind } from '#errors/codes.ts'
import { shortened } from '#platform/log.ts'

/** Kinds that require an operator's action when they have a cause: the database, a platform, a disk. */
const operatorKinds = new Set<ErrorKind>(['unavailable', 'no_space'])

/** Codes whose messages quote what a client or an agent has written. */
const quotingCodes = new Set<ErrorCode>(['invalid_output'])

/**
 * The message of the innermost cause, such as `connect ECONNREFUSED 127.0.0.1:1`: the outer ones quote statements. It
 * may come from an agent, and is cut.
 */
function rootCauseOf(error: Error): string | undefined {
  let { cause } = error
  while (cause instanceof Error && cause.cause instanceof Error) cause = cause.cause
  return cause instanceof Error ? shortened(cause.message) : undefined
}

/**
 * Logs why a request failed: a bug as an error with its stack, an expected failure without one. An expected failure is
 * an error only when it requires an operator's action, otherwise a warning.
 */
export function logFailure(
  log: Pick<FastifyBaseLogger, 'error' | 'warn'>,
  error: unknown,
  about: object,
  text: string,
) {
  if (!(error instanceof AppError)) return log.error({ ...about, err: error }, text)
  const { kind, code, message, cause } = error
  const level = operatorKinds.has(kind) && cause !== undefined ? 'error' : 'warn'
  const reason = quotingCodes.has(code) ? undefined : shortened(message)
  log[level]({ ...about, code, reason, cause: rootCauseOf(error) }, text)
}
