import { expect, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { InstallError } from '#errors/install-error.ts'
import { logFailure } from '#http/failure-log.ts'
import { shownMessage } from '#instances/failure-message.ts'
import { backoffSeconds, failureOf, logFieldsOf, messageOf } from '#lifecycle/attempt/failures.ts'
import { failed, failedForGood } from '#lifecycle/attempt/step.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'

test('the pause doubles, is never longer than the cap, never zero', () => {
  for (let attempts = 1; attempts < 2000; attempts += 1) {
    const pause = backoffSeconds(attempts)
    const full = Math.min(2 ** (attempts - 1), 600)
    expect(pause).toBeGreaterThanOrEqual(full / 2)
    expect(pause).toBeLessThanOrEqual(full)
  }
})

test('a platform’s own message never reaches the owner; Chowder’s and OpenClaw’s do', () => {
  const messageFor = (error: unknown, step: string | null) => messageOf(failureOf(error, step))
  expect(messageFor(new Error('/var/lib/chowder/secret is closed'), 'createSandbox')).not.toContain('/var')
  expect(messageOf(failed('too slow'))).toBe('too slow')
  expect(messageFor(new GatewayRefusal('INVALID', 'bad key'), null)).toContain('bad key')
})

test('the owner learns the class of a failed install, and the log what the installer wrote', () => {
  const written = 'npm error code ECONNREFUSED\nnpm error in /var/lib/chowder/releases'
  const failure = failureOf(new InstallError('OpenClaw could not be installed', written), 'prepareRelease')
  expect(messageOf(failure)).toBe('OpenClaw could not be installed: the package registry cannot be reached.')
  expect(logFieldsOf(failure)).toEqual({ reason: messageOf(failure), output: written })
})

test('the gateway’s output reaches the owner and never the log', () => {
  const failure = { ...failed('it ended'), gatewayOutput: 'a stack trace' }
  expect(shownMessage(messageOf(failure), true)).toBe('it ended: a stack trace')
  expect(JSON.stringify(logFieldsOf(failure))).not.toContain('a stack trace')
})

test('S16: without the permission configure, a message has no words of the gateway, also of a refusal', () => {
  const ended = messageOf({ ...failed('it ended'), gatewayOutput: 'sk-key\nof a person' })
  expect(shownMessage(ended, false)).toBe('it ended.')
  const refused = messageOf(failureOf(new GatewayRefusal('INVALID', 'bad key'), null))
  expect(shownMessage(refused, true)).toBe('OpenClaw refused the configuration: bad key')
  expect(shownMessage(refused, false)).toBe('OpenClaw refused the configuration.')
  expect(shownMessage('too slow.', false)).toBe('too slow.')
  expect(shownMessage(null, false)).toBeNull()
})

test('S24: a line of the log has little of what an agent says, in a request and in a step', () => {
  const words = new GatewayRefusal('UNAVAILABLE', 'x'.repeat(4000))
  const lines: unknown[] = []
  const log = {
    error: (...line: unknown[]) => void lines.push(line),
    warn: (...line: unknown[]) => void lines.push(line),
  }
  const failure = new AppError('gateway_unreachable', 'x'.repeat(4000), { cause: words })
  logFailure(log as never, failure, {}, 'request failed')
  lines.push(logFieldsOf(failureOf(words, 'patchConfig')))
  expect(lines).toHaveLength(2)
  for (const line of lines) expect(JSON.stringify(line).length).toBeLessThan(1000)
})

test('only a failure that the same input would cause again is final', () => {
  expect(failedForGood('x').kind).toBe('failed for good')
  expect(failed('x').kind).toBe('failed')
  expect(failureOf(new AppError('invalid', 'x'), null).kind).toBe('failed for good')
  expect(failureOf(new Error('x'), null).kind).toBe('failed')
})
