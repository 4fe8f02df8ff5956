import { AppError } from '#errors/app-error.ts'
import { InstallError } from '#errors/install-error.ts'
import { failureMessage } from '#instances/failure-message.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { shortened } from '#platform/log.ts'
import { SandboxCapacityError, SandboxPathError, SandboxProblemError } from '#sandbox/driver.ts'
import type { Failure } from './step.ts'

/** Attempts of an instance that should run; it is given up after the last one fails. */
export const maxAttempts = 5

/** A stop or a delete that has failed this often needs an operator: its log lines are errors from here on. */
export const alarmingAttempts = 10

const firstPauseSeconds = 1
/** Reached only by stops and deletes, which are retried for ever and must not overload a platform that is down. */
const maxPauseSeconds = 600

/** Seconds until the next attempt: doubled each time up to the cap, half of it random, so that retries spread out. */
export function backoffSeconds(attempts: number): number {
  const full = Math.min(firstPauseSeconds * 2 ** Math.min(Math.max(0, attempts - 1), 16), maxPauseSeconds)
  return full / 2 + (Math.random() * full) / 2
}

/**
 * Maps an exception to the failure of a step. An `invalid` input would fail again in the same way, so it fails for
 * good. A platform's own message stays in the log: it may name paths of the host.
 */
export function failureOf(error: unknown, step: string | null): Failure {
  if (error instanceof GatewayRefusal)
    return { kind: 'failed', reason: 'OpenClaw refused the configuration', gatewayOutput: error.message, error }
  const isFinal = error instanceof AppError && error.kind === 'invalid'
  return { kind: isFinal ? 'failed for good' : 'failed', reason: reasonFor(error, step), error }
}

/** Errors whose message the owner of an instance may read. */
const shown = [AppError, InstallError, SandboxPathError, SandboxCapacityError, SandboxProblemError]

function reasonFor(error: unknown, step: string | null): string {
  if (shown.some((kind) => error instanceof kind)) return (error as Error).message
  return `The step ${step ?? 'start'} failed. The reason is in Chowder's log.`
}

/** The message for the instance's owner. */
export const messageOf = ({ reason, gatewayOutput }: Failure): string =>
  gatewayOutput ? failureMessage(`${reason}:`, gatewayOutput) : reason

/** The fields of a log line about a failure, without the gateway's output. */
export const logFieldsOf = ({ reason, error }: Pick<Failure, 'reason' | 'error'>) => {
  if (error instanceof InstallError) return { reason, output: error.output }
  // Its message comes from the gateway.
  if (error instanceof GatewayRefusal) return { reason, cause: shortened(error.message) }
  return error === undefined ? { reason } : { err: error }
}
