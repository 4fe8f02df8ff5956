import { expect, test } from 'vitest'
import { createBusyWatch, type Priority } from '#sandbox/local/busy-watch.ts'
import { present } from '../support/present.ts'

const started = -100

/**
 * Looks at a sandbox with two processors every half second while it uses so much of a processor for so many seconds, and
 * returns when it was busy, or had the lowest priority. The looks find so many threads that want a processor, in turn.
 */
function lookedAt(secondsBefore = started) {
  const look = createBusyWatch(async () => secondsBefore)
  let [at, seconds, looks] = [0, 0, 0]
  return async (use: number, forSeconds: number, wanted: Priority[] = ['low', 'lowest'], threads = [1]) => {
    const seenAt: number[] = []
    for (let passed = 0; passed < forSeconds; passed += 0.5) {
      const runnable = present(threads[looks % threads.length])
      const countRunnable = async (most: number) => Math.min(runnable, most)
      const [seen] = await look([{ id: 'sandbox', seconds, processors: 2, countRunnable }], at)
      if (wanted.includes(present(seen).priority)) seenAt.push(passed)
      at += 0.5
      seconds += use / 2
      looks += 1
    }
    return seenAt
  }
}
const everyHalf = (first: number, last: number) =>
  Array.from({ length: (last - first) * 2 + 1 }, (_, index) => first + index / 2)

test('a sandbox is busy once it has used most of its processors for a second, and until it used less for three', async () => {
  const use = lookedAt()
  expect(await use(0.7, 10)).toEqual([])
  expect(await use(1.3, 5)).toEqual(everyHalf(1, 4.5))
  expect(await use(0.6, 10)).toEqual(everyHalf(0, 2.5))
})

test('it is busy once it has used most of one processor for three seconds, and until it used less', async () => {
  const use = lookedAt()
  expect(await use(0.1, 10)).toEqual([])
  expect(await use(1, 2)).toEqual([])
  expect(await use(0.1, 10)).toEqual([])
  const busyAt = await use(0.9, 10)
  expect(busyAt).toEqual(everyHalf(present(busyAt[0]), 9.5))
  expect(busyAt[0]).toSatisfy((seconds: number) => seconds >= 2.5 && seconds <= 3.5)
  expect(await use(0.7, 10)).toEqual(everyHalf(0, 9.5))
  expect(await use(0.6, 10)).toSatisfy((still: number[]) => present(still.at(-1)) <= 3)
})

test('it has the lowest priority once it had several threads for eight seconds while it was busy', async () => {
  const use = lookedAt()
  await use(0.1, 10)
  expect(await use(2, 18, ['lowest'], [4])).toEqual(everyHalf(9, 17.5))
  expect(await use(1, 8, ['lowest'], [2, 1])).toEqual(everyHalf(0, 7.5))
  expect(await use(1, 16, ['lowest'])).toSatisfy((still: number[]) => present(still.at(-1)) < 15)
  expect(await use(1, 16)).toEqual(everyHalf(0, 15.5))
  expect(await use(0.3, 10)).toSatisfy((still: number[]) => present(still.at(-1)) <= 3)
  expect(await use(1, 10, ['lowest'], [2])).toEqual([])
})

test('it has not where it is given one turn after another, of which each collects garbage with several threads', async () => {
  const use = lookedAt()
  await use(0.1, 10)
  expect(await use(1, 60, ['lowest'], [1, 1, 2, 4, 2, 1, 1])).toEqual([])
  expect(await use(1, 60)).toEqual(everyHalf(0, 59.5))
})

test('its start does not count, nor what it computed in it', async () => {
  const use = lookedAt(0)
  expect(await use(1, 15)).toEqual([])
  expect((await use(1, 10))[0]).toSatisfy((seconds: number) => seconds >= 2.5 && seconds <= 3.5)
})
