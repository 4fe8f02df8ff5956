import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
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

afterEach(() => void vi.useRealTimers())

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

test('one end among many of an organization halves its limit, and the ends of those that started with it do not', async () => {
  const [first = '', ...others] = await enterAll(named('a', 12))
  starts.leave(first, 'ended')
  expect(warned).toEqual([{ limit: 6, organizationId: 'a' }])
  for (const id of others.slice(0, 6)) starts.leave(id, 'ended')
  expect(warned).toHaveLength(1)
  expect(await enterAll(named('more', 8))).toHaveLength(1)
  for (const id of others.slice(6)) starts.leave(id, 'unknown')
  expect(await enterAll(named('other', 8))).toHaveLength(5)
})

test('ends of those that started later halve it again, down to two', async () => {
  for (const limit of [6, 3, 2, 2]) {
    const entered = await enterAll(named('a', 12))
    for (const id of entered) starts.leave(id, 'ended')
    expect(warned.at(-1)).toEqual({ limit, organizationId: 'a' })
  }
  expect(warned, 'no fewer').toHaveLength(3)
})

test('the gateways that one organization makes end take no start from another', async () => {
  const theirs = await enterAll(named('b', 3), organizations)
  for (let round = 0; round < 4; round += 1)
    for (const id of await enterAll(named('a', 20), organizations)) starts.leave(id, 'ended')
  for (const id of theirs) starts.leave(id, 'ready')
  expect(await enterAll(named('b', 20), organizations)).toHaveLength(12)
})

test('ends of two organizations that started together halve the limit of all, down to four', async () => {
  const all = await enterAll([...named('a', 12), ...named('b', 6), ...named('c', 3)], organizations)
  starts.leave('a0', 'ended')
  starts.leave('b0', 'ended')
  expect(warned).toEqual([{ limit: 6, organizationId: 'a' }, { limit: 3, organizationId: 'b' }, { limit: 10 }])
  for (const id of all) starts.leave(id, 'ended')
  const later = await enterAll([...named('d', 12), ...named('e', 12), ...named('f', 12)], organizations)
  expect(later.map(organizations)).toEqual([...'dddddeeef'])
  for (const id of ['d0', 'e0', ...later]) starts.leave(id, 'ended')
  expect(warned.at(-1)).toEqual({ limit: 4 })
  const least = await enterAll([...named('g', 4), ...named('h', 4), ...named('i', 4)], organizations)
  expect(least.map(organizations)).toEqual([...'gghi'])
  for (const id of least) starts.leave(id, 'ended')
  expect(
    warned.filter((fields) => !('organizationId' in (fields as object))),
    'no fewer',
  ).toHaveLength(2)
})

test('the limit of all is half of those that started together, in whatever order they end', async () => {
  await enterAll([...named('a', 12), ...named('b', 6), ...named('c', 3)], organizations)
  for (const id of [...named('a', 12), 'b0']) starts.leave(id, 'ended')
  expect(warned.at(-1)).toEqual({ limit: 10 })
})

test('a limit is forgotten once none of its gateways has ended for half an hour', async () => {
  for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  vi.useFakeTimers({ toFake: ['performance'] })
  vi.advanceTimersByTime(24 * 60 * 60_000)
  expect(await enterAll(named('a', 12))).toHaveLength(12)
})

test('ends of two organizations, the one after the other, say nothing of the host', async () => {
  for (const id of await enterAll(named('a', 12), organizations)) starts.leave(id, 'ended')
  for (const id of await enterAll(named('b', 12), organizations)) starts.leave(id, 'ended')
  expect(await enterAll([...named('c', 20), ...named('d', 20)], organizations)).toHaveLength(18)
})

test('the end of a gateway that starts beside few says nothing of the host', async () => {
  for (const id of await enterAll([...named('a', 2), ...named('b', 2)], organizations)) starts.leave(id, 'ended')
  expect(warned).toEqual([])
  expect(await enterAll(named('b', 20))).toHaveLength(12)
})

test('each gateway that gets ready while others wait raises the limit by one, up to the first one', async () => {
  for (let round = 0; round < 3; round += 1) for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  const running = new Set<string>()
  const stop = new AbortController()
  for (const id of named('a', 60))
    void starts.enter(id, 'a', stop.signal).then(
      () => void running.add(id),
      () => {},
    )
  const counts: number[] = []
  for (let round = 0; round < 15; round += 1) {
    await sleep(soonMs / 2)
    counts.push(running.size)
    const [ready] = running
    if (!ready) break
    running.delete(ready)
    starts.leave(ready, 'ready')
  }
  stop.abort()
  expect(counts).toEqual([2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12, 12, 12, 12])
})

test('those that wait start in the order of their arrival, and one whose intent changes leaves the line', async () => {
  for (let round = 0; round < 2; round += 1) for (const id of await enterAll(named('a', 12))) starts.leave(id, 'ended')
  const running = await enterAll(named('a', 12))
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
