import { expect, test } from 'vitest'
import { publicStatus } from '#instances/status.ts'

const row = (desiredState: 'running' | 'stopped' | 'terminated', settled: boolean, ready: boolean) =>
  publicStatus({ desiredState, generation: 2, observedGeneration: settled ? 2 : 1, readyAt: ready ? new Date() : null })

test.each([
  ['terminated', true, false, 'terminated'],
  ['terminated', false, false, 'terminated'],
  ['stopped', true, false, 'stopped'],
  ['stopped', false, false, 'stopped'],
  ['running', true, true, 'running'],
  ['running', false, true, 'running'],
  ['running', true, false, 'error'],
  ['running', false, false, 'provisioning'],
] as const)('desired %s, settled %s, ready %s is %s', (desired, settled, ready, status) => {
  expect(row(desired, settled, ready)).toBe(status)
})
