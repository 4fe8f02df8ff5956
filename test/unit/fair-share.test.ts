import { setImmediate as nextTurn } from 'node:timers/promises'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { createPauses, createShareCount, noteWork, takeShare } from '#platform/fair-share.ts'

const piece = 16 * 1024

let now = performance.now()
beforeAll(() => {
  vi.useFakeTimers({ toFake: ['setTimeout'] })
  vi.spyOn(performance, 'now').mockImplementation(() => now)
})
afterAll(() => {
  vi.mocked(performance.now).mockRestore()
  vi.useRealTimers()
})

/** The pause between shares while several owners have work. */
const pause = async () => {
  vi.advanceTimersByTime(1)
  await nextTurn()
}
/** After which the work of others is not recent any more. */
const aWhile = async () => {
  now += 150
  await pause()
}

/** Fifty connections of one owner, all of which have another piece at once. Returns how many were worked on. */
function flood(owner: string) {
  const ending = new AbortController()
  let done = 0
  const work = async () => {
    while (!ending.signal.aborted) {
      await takeShare(owner, piece)
      done += 1
    }
  }
  const ended = Promise.all(Array.from({ length: 50 }, work))
  return {
    takeCount() {
      const count = done
      done = 0
      return count
    },
    async end() {
      ending.abort()
      for (let share = 0; share < 30; share += 1) await pause()
      await ended
    },
  }
}

test('an owner with much work gets two pieces in every turn of the event loop while nobody else has work', async () => {
  await aWhile()
  const one = flood('one')
  await aWhile()
  one.takeCount()
  for (let turn = 0; turn < 20; turn += 1) {
    await nextTurn()
    expect(one.takeCount()).toBe(2)
  }
  await one.end()
})

test('owners with much work get two pieces each, then pause, and another one goes on at once', async () => {
  const floods = [flood('one'), flood('other')]
  await pause()
  for (const { takeCount } of floods) takeCount()
  for (let share = 0; share < 20; share += 1) {
    for (let turn = 0; turn < 10; turn += 1) {
      await nextTurn()
      expect(floods.map(({ takeCount }) => takeCount())).toEqual([0, 0])
      expect(takeShare(`other ${share} ${turn}`, 10 * piece)).toBeUndefined()
    }
    await pause()
    expect(floods.map(({ takeCount }) => takeCount())).toEqual([2, 2])
  }
  for (const { end } of floods) await end()
})

test('work that takes no share makes others pause for a while', async () => {
  await aWhile()
  const one = flood('one')
  await aWhile()
  noteWork('other')
  await pause()
  one.takeCount()
  await nextTurn()
  await nextTurn()
  expect(one.takeCount()).toBe(0)
  await aWhile()
  one.takeCount()
  await nextTurn()
  await nextTurn()
  expect(one.takeCount()).toBe(4)
  await one.end()
})

test('a large piece is worked on whole, and what comes after it waits', async () => {
  expect(takeShare('large', 100 * piece)).toBeUndefined()
  let isDone = false
  const waiting = takeShare('large', 1)?.then(() => {
    isDone = true
  })
  await Promise.resolve()
  expect(isDone).toBe(false)
  await aWhile()
  await waiting
  await aWhile()
  expect(takeShare('large', 1)).toBeUndefined()
})

test('a wait that is no longer wanted ends at once, and takes nothing of the share', async () => {
  await aWhile()
  noteWork('other')
  const left = new AbortController()
  expect(takeShare('left', 100 * piece)).toBeUndefined()
  const order: string[] = []
  const waits = [
    takeShare('left', 100 * piece, left.signal)?.then(() => order.push('left')),
    takeShare('left', piece)?.then(() => order.push('stays')),
  ]
  left.abort()
  await Promise.resolve()
  expect(order).toEqual(['left'])
  await pause()
  await Promise.all(waits)
  expect(order).toEqual(['left', 'stays'])
  expect(takeShare('left', piece)).toBeUndefined()
  expect(takeShare('left', 100 * piece, left.signal)).toBeUndefined()
})

test('a source pauses once its share is used up, and what it brings meanwhile counts', async () => {
  await aWhile()
  noteWork('other')
  const source = { pause: vi.fn(), resume: vi.fn() }
  const count = createShareCount('source', createPauses(source))
  void count(2 * piece)
  expect(source.pause).not.toHaveBeenCalled()
  void count(1)
  expect(source.pause).toHaveBeenCalledTimes(1)
  void count(piece)
  void count(piece)
  expect(source.resume).not.toHaveBeenCalled()
  await pause()
  expect(source.resume).toHaveBeenCalledTimes(1)
  void count(1)
  expect(source.pause).toHaveBeenCalledTimes(2)
  await pause()
  expect(source.resume).toHaveBeenCalledTimes(2)
})

test('a source that is paused for two reasons goes on after both', async () => {
  const source = { pause: vi.fn(), resume: vi.fn() }
  const pauseDuring = createPauses(source)
  const reasons = [Promise.withResolvers<void>(), Promise.withResolvers<void>()]
  for (const { promise } of reasons) void pauseDuring(promise)
  reasons[0]?.resolve()
  await nextTurn()
  expect(source.resume).not.toHaveBeenCalled()
  reasons[1]?.resolve()
  await nextTurn()
  expect(source.resume).toHaveBeenCalledTimes(1)
})
