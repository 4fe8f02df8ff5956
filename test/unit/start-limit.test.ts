import { setTimeout as sleep } from 'node:timers/promises'
import { beforeEach, expect, test } from 'vitest'
import { createStartLimit, type StartLimit } from '#lifecycle/start-limit.ts'

const within = () => AbortSignal.timeout(5000)
/** Longer than the pause between two looks. */
const soonMs = 350

let warned: unknown[]
let starts: StartLimit
beforeEach(() => {
  warned = []
  starts = createStartLimit(24, { warn: (fields: unknown) => void warned.push(fields) } as never)
})

/** Enters as many of these as may start now, and returns them. The others wait no longer. */
async function enterAll(ids: string[], organizationOf = (_id: string) => 'a'): Promise<string[]> {
  const entered: string[] = []
  const soon = AbortSignal.timeout(soonMs)
  await Promise.all(
    ids.map((id) =>
      starts.enter(id, organizationOf(id), soon).then(
        () => void entered.push(id),
        () => {},
      ),
    ),
  )
  return entered
}
const named = (prefix: string, count: number) => Array.from({ length: count }, (_, n) => `${prefix}${n}`)
const organizations = (id: string) => id[0] as string

test('an organization may hold half of the starts, the next one half of the rest', async () => {
  const ids = [...named('a', 20), ...named('b', 20), ...named('c', 20)]
  const entered = await enterAll(ids, organizations)
  expect(['a', 'b', 'c'].map((name) => entered.filter((id) => organizations(id) === name).length)).toEqual([12, 6, 3])
  expect(warned).toEqual([])
})

test('one end among many halves the limit, and the ends of those that started with it do not halve it again', async () => {
  const [first = '', ...others] = await enterAll(named('a', 12))
  starts.leave(first, 'ended')
  expect(warned).toEqual([{ limit: 6 }])
  for (const id of others.slice(0, 6)) starts.leave(id, 'ended')
  expect(warned).toHaveLength(1)
  expect(await enterAll(named('b', 8)), 'five of the old ones still start').toEqual([])
  for (const id of others.slice(6)) starts.leave(id, 'unknown')
  expect(await enterAll(named('c', 8))).toHaveLength(3)
})

test('ends of those that started later halve it again, down to four', async () => {
  for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  const later = await enterAll([...named('b', 8), ...named('c', 8), ...named('d', 8)], organizations)
  expect(later.map(organizations)).toEqual(['b', 'b', 'b', 'c', 'c', 'd'])
  starts.leave(later[0] as string, 'ended')
  expect(warned).toEqual([{ limit: 6 }, { limit: 4 }])
  for (const id of later.slice(1)) starts.leave(id, 'unknown')
  const least = await enterAll([...named('e', 4), ...named('f', 4), ...named('g', 4)], organizations)
  expect(least.map(organizations).sort()).toEqual(['e', 'e', 'f', 'g'])
  for (const id of least) starts.leave(id, 'ended')
  expect(warned, 'no fewer').toHaveLength(2)
})

test('the end of a gateway that starts beside few says nothing of the host', async () => {
  for (const id of await enterAll(named('a', 4))) starts.leave(id, 'ended')
  expect(warned).toEqual([])
  expect(await enterAll(named('b', 20))).toHaveLength(12)
})

test('each gateway that gets ready while others wait raises the limit by one, up to the first one', async () => {
  for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  const running = new Set<string>()
  const stop = new AbortController()
  for (const id of named('b', 60))
    void starts.enter(id, 'b', stop.signal).then(
      () => void running.add(id),
      () => {},
    )
  const counts: number[] = []
  for (let round = 0; round < 20; round += 1) {
    await sleep(soonMs / 2)
    counts.push(running.size)
    const [ready] = running
    if (!ready) break
    running.delete(ready)
    starts.leave(ready, 'ready')
  }
  stop.abort()
  expect(counts).toEqual([3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 12])
})

test('those that wait start in the order of their arrival, and one whose intent changes leaves the line', async () => {
  for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  const running = await enterAll(named('b', 3))
  const order: string[] = []
  const leaving = new AbortController()
  const enter = (id: string, signal = within()) =>
    starts.enter(id, 'a', signal).then(
      () => void order.push(id),
      () => void order.push(`${id} left`),
    )
  const all = [enter('first'), enter('second', leaving.signal), enter('third')]
  leaving.abort()
  await all[1]
  starts.leave(running[0] as string, 'unknown')
  await all[0]
  starts.leave('first', 'unknown')
  await all[2]
  expect(order).toEqual(['second left', 'first', 'third'])
})
