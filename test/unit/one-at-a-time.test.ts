import { setImmediate as nextTurn } from 'node:timers/promises'
import { afterEach, expect, test, vi } from 'vitest'
import { oneAtATime } from '#platform/one-at-a-time.ts'

afterEach(() => void vi.useRealTimers())

/** Work that ends when it is told to. */
function start(owner: string) {
  const { promise, resolve } = Promise.withResolvers<void>()
  const state = { isRunning: false }
  const result = oneAtATime(owner, async () => {
    state.isRunning = true
    await promise
  })
  return { state, result, end: resolve }
}

test('the work of an owner runs in its order, one at a time, and that of another owner beside it', async () => {
  const [first, second, other] = [start('one'), start('one'), start('other')]
  await nextTurn()
  expect([first, second, other].map(({ state }) => state.isRunning)).toEqual([true, false, true])
  first.end()
  await first.result
  await nextTurn()
  expect(second.state.isRunning).toBe(true)
  second.end()
  other.end()
  await Promise.all([second.result, other.result])
})

test('work that fails rejects its own call alone', async () => {
  const failed = oneAtATime('failing', () => Promise.reject(new Error('broken')))
  const next = oneAtATime('failing', async () => 'done')
  await expect(failed).rejects.toThrow('broken')
  expect(await next).toBe('done')
})

test('what has waited for more than 15 s does not run', async () => {
  vi.useFakeTimers({ toFake: ['performance'] })
  const [slow, late] = [start('slow'), start('slow')]
  await nextTurn()
  vi.advanceTimersByTime(16_000)
  slow.end()
  await slow.result
  await expect(late.result).rejects.toMatchObject({ code: 'overloaded' })
  expect(late.state.isRunning).toBe(false)
  expect(await oneAtATime('slow', async () => 'done')).toBe('done')
})
