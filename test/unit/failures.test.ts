import { expect, test } from 'vitest'
import { backoffSeconds, isFinal, messageFor, StepFailure } from '#lifecycle/failures.ts'
import { GatewayRefusal } from '#openclaw/gateway.ts'
import { AppError } from '#platform/errors.ts'

test('the pause doubles, is never longer than the cap, never zero', () => {
  for (let attempts = 1; attempts < 2000; attempts += 1) {
    const pause = backoffSeconds(attempts)
    const full = Math.min(2 ** (attempts - 1), 600)
    expect(pause).toBeGreaterThanOrEqual(full / 2)
    expect(pause).toBeLessThanOrEqual(full)
  }
})

test('a platform’s own words never reach the owner; ours and OpenClaw’s do', () => {
  expect(messageFor(new Error('/var/lib/chowder/secret is closed'), 'createSandbox')).not.toContain('/var')
  expect(messageFor(new StepFailure('too slow'), 'checkHealth')).toBe('too slow')
  expect(messageFor(new GatewayRefusal('INVALID', 'bad key'), null)).toContain('bad key')
})

test('only what the same input would fail again is final', () => {
  expect(isFinal(new StepFailure('x', { final: true }))).toBe(true)
  expect(isFinal(new StepFailure('x'))).toBe(false)
  expect(isFinal(new AppError('invalid', 'x'))).toBe(true)
  expect(isFinal(new Error('x'))).toBe(false)
})
