import { expect, test } from 'vitest'
import { createBusyWatch, type Priority } from '#sandbox/local/busy-watch.ts'
import { present } from '../support/present.ts'

const started = -100

/**
 * Looks at a sandbox with two processors every half second while it uses so much of a processor for so many seconds, and
 * returns when it was busy, or when it had the lowest priority.
 */
function lookedAt(secondsBefore = started) {
  const look = createBusyWatch(async () => secondsBefore)
  let [at, seconds] = [0, 0]
  return async (use: number, forSeconds: number, wanted: Priority[] = ['low', 'lowest']) => {
    const seenAt: number[] = []
    for (let passed = 0; passed < forSeconds; passed += 0.5) {
      const [seen] = await look([{ id: 'sandbox', seconds, processors: 2 }], at)
      if (wanted.includes(present(seen).priority)) seenAt.push(passed)
      at += 0.5
      seconds += use / 2
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

test('it has the lowest priority once it was busy for eight seconds without a pause, until it pauses', async () => {
  const use = lookedAt()
  await use(0.1, 10)
  expect(await use(2, 18, ['lowest'])).toEqual(everyHalf(9, 17.5))
  expect(await use(0.85, 8, ['lowest'])).toEqual(everyHalf(0, 7.5))
  expect(await use(0.75, 16, ['lowest'])).toSatisfy((still: number[]) => present(still.at(-1)) < 15)
  expect(await use(0.75, 16)).toEqual(everyHalf(0, 15.5))
  expect(await use(0.3, 10)).toSatisfy((still: number[]) => present(still.at(-1)) <= 3)
  expect(await use(1, 10, ['lowest'])).toEqual([])
})

test.each(everyHalf(0, 6.5))('it has not where it is given one turn after another (%s s)', async (before) => {
  const use = lookedAt()
  await use(0.75, before)
  const busy: number[] = []
  const lowest: number[] = []
  for (let turns = 0; turns < 10; turns += 1) {
    lowest.push(...(await use(0.75, 6, ['lowest'])))
    busy.push(...(await use(1.3, 1)))
  }
  expect(busy).not.toEqual([])
  expect(lowest).toEqual([])
})

test('its start does not count, nor what it computed in it', async () => {
  const use = lookedAt(0)
  expect(await use(1, 15)).toEqual([])
  expect((await use(1, 10))[0]).toSatisfy((seconds: number) => seconds >= 2.5 && seconds <= 3.5)
})
