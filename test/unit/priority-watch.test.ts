import { expect, test } from 'vitest'
import { createPriorityWatch } from '#sandbox/local/priority-watch.ts'
import { type Priority, processorsWanted } from '#sandbox/processor-demand.ts'
import { present } from '../support/present.ts'

const started: number = -100

/**
 * Looks at a sandbox with two processors every so many seconds while it uses so much of a processor for so long, and
 * returns when it had one of the priorities. The looks find so many threads that want a processor, in turn, or one that
 * waits for a disk.
 */
function lookedAt({ every = 0.5, processors = 2, secondsBefore = () => started } = {}) {
  const look = createPriorityWatch(async () => secondsBefore())
  let [at, seconds, looks] = [0, 0, 0]
  return async (
    use: number,
    forSeconds: number,
    threads: (number | 'disk')[] = [1],
    wanted: Priority[] = ['low', 'lowest'],
  ) => {
    const seenAt: number[] = []
    for (let passed = 0; passed < forSeconds; passed += every) {
      const found = present(threads[looks % threads.length])
      const countBusy = async (most: number) =>
        found === 'disk' ? { runnable: 0, onDisk: 1 } : { runnable: Math.min(found, most), onDisk: 0 }
      const [seen] = await look([{ id: 'sandbox', seconds, processors, countBusy }], at)
      if (wanted.includes(present(seen).priority)) seenAt.push(passed)
      at += every
      seconds += use * every
      looks += 1
    }
    return seenAt
  }
}
const everyHalf = (first: number, last: number) =>
  Array.from({ length: (last - first) * 2 + 1 }, (_, index) => first + index / 2)

test('a sandbox that wants several processors has a low priority after 6 s, then the lowest, until it pauses', async () => {
  const use = lookedAt()
  expect(await use(0.3, 10)).toEqual([])
  expect(await use(2, 18, [3], ['low'])).toEqual(everyHalf(5, 7))
  expect(await use(2, 18, [3], ['lowest'])).toEqual(everyHalf(0, 17.5))
  expect(await use(1, 6, [2, 2, 2, 1])).toEqual(everyHalf(0, 5.5))
  expect(await use(1, 10, [1, 0])).toSatisfy((still: number[]) => present(still.at(-1)) <= 3)
})

test('that is so with looks that are 2 s apart, of which two alone say nothing', async () => {
  const use = lookedAt({ every: 2 })
  await use(0.3, 10)
  expect(await use(1, 8, [2, 2, 1, 1])).toEqual([])
  await use(0.1, 20)
  expect(await use(1, 20, [2], ['low'])).toEqual([6])
  expect(await use(1, 20, [2], ['lowest'])).toEqual([0, 2, 4, 6, 8, 10, 12, 14, 16, 18])
  await use(0.1, 20)
  expect(await use(1, 8, [4], ['low'])).toEqual([4])
  expect(await use(1, 4, [4], ['lowest'])).toEqual([0, 2])
})

test('one that wants many has a low priority after 3 s, and the lowest after 5', async () => {
  const use = lookedAt()
  await use(0.3, 10)
  expect(await use(2, 10, [4], ['low'])).toEqual(everyHalf(3, 4))
  expect(await use(2, 10, [4], ['lowest'])).toEqual(everyHalf(0, 9.5))
})

test('looks that are further apart say no more', async () => {
  const use = lookedAt({ every: 6 })
  await use(0.3, 12)
  expect(await use(1, 24, [2], ['low'])).toEqual([12])
  expect(await use(1, 6, [1])).toEqual([])
})

test('a look after 10 s without one begins anew', async () => {
  const use = lookedAt({ every: 11 })
  expect(await use(1, 110, [2])).toEqual([])
})

test('with more than one thread can use, it wants several, whatever its threads do at a look', async () => {
  expect(await lookedAt()(1.2, 10, [1])).not.toEqual([])
})

test('that is so where its threads cannot be counted, and with less the look fails', async () => {
  const fail = () => Promise.reject(new Error('no ps'))
  expect(await processorsWanted(1.2, 2, fail)).toBe('several')
  await expect(processorsWanted(1, 2, fail)).rejects.toThrow('no ps')
})

test('after the lowest it has a low one where it goes on with one thread', async () => {
  const use = lookedAt()
  await use(2, 40, [4])
  expect(await use(1, 20, [1], ['low'])).toEqual(everyHalf(3, 19.5))
})

test.each([0.5, 2])(
  'one that wants something at 59 looks has a low one until it pauses, at looks %d s apart',
  async (every) => {
    const use = lookedAt({ every })
    await use(0.1, 10)
    // The first look is at what it used before.
    expect(await use(0.5, 59 * every, [1, 'disk'])).toEqual([])
    expect(await use(0.5, 20 * every, [1, 'disk'], ['low'])).toHaveLength(20)
    expect(await use(1, 20 * every, [1, 'disk'], ['lowest'])).toEqual([])
    expect(await use(0.5, 20 * every, [0, 1])).toSatisfy((still: number[]) => still.every((at) => at <= every))
  },
)

test.each([0.5, 2])('it has the usual one where it pauses at a tenth of the looks, %d s apart', async (every) => {
  expect(await lookedAt({ every })(1, 120, [1, 1, 1, 1, 'disk', 1, 1, 1, 1, 0])).toEqual([])
})

test('it has the usual one with one thread where it may use one processor', async () => {
  expect(await lookedAt({ processors: 1 })(1, 120, [1, 'disk'])).toEqual([])
})

test('it has it where it is given one turn after another, of which each collects garbage with several threads', async () => {
  expect(await lookedAt()(1, 60, [1, 1, 2, 4, 2, 0, 1, 1])).toEqual([])
})

test('it gets its priority back where it has so little of the processors that it could not answer', async () => {
  const use = lookedAt()
  expect(present((await use(2, 20, [4], ['lowest'])).at(-1))).toBe(19.5)
  expect(await use(0.1, 10, [4])).toSatisfy((still: number[]) => present(still.at(-1)) <= 4)
})

test('its start does not count, nor what was before it', async () => {
  let secondsBefore = 0
  const use = lookedAt({ secondsBefore: () => secondsBefore })
  expect(await use(1, 15, [3])).toEqual([])
  expect((await use(1, 10, [3]))[0]).toBe(5.5)
  secondsBefore = 25
  expect(await use(1, 10, [4])).toEqual([])
})
