import { AppError, type AppErrorOptions } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { GatewayRefusal, GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import { SandboxAbsentError, SandboxCapacityError, SandboxPathError } from '#sandbox/driver.ts'

/** The gateway was unreachable, failed, or refused for a reason that is not the caller's: 502. */
export const gatewayUnreachable = (options?: AppErrorOptions): AppError =>
  new AppError('gateway_unreachable', texts.gatewayUnavailable, options)

/** The gateway did not answer in time, or its answer was lost: the request may have been carried out. 504. */
export const gatewayTimeout = (options?: AppErrorOptions): AppError =>
  new AppError('gateway_timeout', texts.gatewayUnavailable, options)

/** Whether the gateway called the request itself invalid: its message is for the caller. */
export const isInvalidRequest = (error: unknown): error is GatewayRefusal =>
  error instanceof GatewayRefusal && error.code === 'INVALID_REQUEST'

/**
 * Maps a failure of a gateway or a sandbox to the error for the caller. No other code does. `signal` is the deadline of
 * the call. Any other error is returned unchanged, unless the deadline has passed.
 */
export function toCallerError(cause: unknown, signal?: AbortSignal): unknown {
  if (cause instanceof SandboxPathError) return new AppError('permission_denied', cause.message, { cause })
  if (cause instanceof SandboxCapacityError) return new AppError('no_space', cause.message, { cause })
  if (cause instanceof SandboxAbsentError || cause instanceof GatewayRefusal) return gatewayUnreachable({ cause })
  if (cause instanceof GatewayUnreachable && !cause.outcomeUnknown) return gatewayUnreachable({ cause })
  if (cause instanceof GatewayUnreachable || signal?.aborted) return gatewayTimeout({ cause })
  return cause
}
