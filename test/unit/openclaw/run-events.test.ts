import { expect, test } from 'vitest'
import { readRunEvent } from '#openclaw/gateway/run-events.ts'

const frame = (data: object, payload: object = {}) => ({
  type: 'event',
  event: 'agent',
  payload: { runId: 'r', stream: 'item', seq: 1, ts: 5000, data, ...payload },
})
const exec = { itemId: 'tool:a', toolCallId: 'a', name: 'exec', kind: 'tool', title: 'Exec run it' }

test.each([
  [{ phase: 'start', status: 'running' }, 'in_progress'],
  [{ phase: 'end', status: 'completed' }, 'completed'],
  [{ phase: 'end', status: 'failed' }, 'failed'],
  [{ phase: 'end', status: 'blocked' }, 'failed'],
  [{ phase: 'end' }, 'failed'],
])('a tool with %j is %s', (fields, status) => {
  expect(readRunEvent(frame({ ...exec, ...fields }))).toEqual({
    runId: 'r',
    kind: 'tool',
    id: 'a',
    name: 'exec',
    title: 'Exec run it',
    status,
    at: 5000,
  })
})

test.each([
  [{ phase: 'update' }, {}],
  [{ phase: 'start', kind: 'patch' }, {}],
  [{ phase: 'start', toolCallId: 1 }, {}],
  [{ phase: 'start', toolCallId: 'a'.repeat(501) }, {}],
  [{ phase: 'start', name: null }, {}],
  [{ phase: 'start' }, { ts: '5000' }],
  [{ phase: 'start' }, { ts: -1 }],
  [{ phase: 'start' }, { ts: 0.5 }],
  [{ phase: 'start' }, { ts: 1e300 }],
])('a tool with %j and %j is none', (fields, payload) => {
  expect(readRunEvent(frame({ ...exec, ...fields }, payload))).toBeNull()
})

test('the texts of a tool are cut, and well-formed', () => {
  const long = { ...exec, phase: 'start', name: `${'n'.repeat(999)}🦞`, title: 't'.repeat(2000) }
  expect(readRunEvent(frame(long))).toMatchObject({ name: `${'n'.repeat(999)}\ufffd`, title: 't'.repeat(1000) })
  expect(readRunEvent(frame({ ...exec, phase: 'start', title: 1 }))).toMatchObject({ title: null })
})
