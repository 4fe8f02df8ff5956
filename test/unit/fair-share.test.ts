import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { takeShare } from '#platform/fair-share.ts'

const piece = 16 * 1024
const most = 10_000

/** Fifty connections of one owner, all of which have another piece at once. Returns how many were worked on. */
function flood(owner: string, signal: AbortSignal) {
  let done = 0
  const work = async () => {
    while (!signal.aborted && done < most) {
      await takeShare(owner, piece)
      done += 1
    }
  }
  const ended = Promise.all(Array.from({ length: 50 }, work))
  return { count: () => done, ended }
}

test('an owner with much work gets two pieces in a turn of the event loop, and another one goes on at once', async () => {
  const ending = new AbortController()
  const [one, other] = [flood('one', ending.signal), flood('other', ending.signal)]
  await nextTurn()
  for (let turn = 0; turn < 20; turn += 1) {
    const before = [one.count(), other.count()]
    await nextTurn()
    expect(one.count() - (before[0] ?? 0)).toBe(2)
    expect(other.count() - (before[1] ?? 0)).toBe(2)
    expect(takeShare(`third ${turn}`, 10 * piece)).toBeUndefined()
  }
  ending.abort()
  await Promise.all([one.ended, other.ended])
})

test('a large piece is worked on whole, and what comes after it waits for another turn', async () => {
  expect(takeShare('large', 100 * piece)).toBeUndefined()
  let isDone = false
  const waiting = takeShare('large', 1)?.then(() => {
    isDone = true
  })
  await Promise.resolve()
  expect(isDone).toBe(false)
  await waiting
  await nextTurn()
  expect(takeShare('large', 1)).toBeUndefined()
})
