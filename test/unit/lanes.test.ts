import { expect, test } from 'vitest'
import { openLanes } from '../../src/lifecycle/lanes.ts'
import type { Due } from '../../src/platform/bell.ts'

const row = (organizationId: string, id: string): Due => ({ organizationId, id, generation: 1, leaseToken: 0 })

/** Work that ends when it is told to. */
function openWorks() {
  const started: string[] = []
  const ends = new Map<string, () => void>()
  const workOn = (id: string) => () => {
    started.push(id)
    return new Promise<void>((resolve) => ends.set(id, resolve))
  }
  return { started, workOn, end: (id: string) => ends.get(id)?.() }
}

test('no organization has more than its lanes, whoever else has some', () => {
  const { started, workOn } = openWorks()
  const inLane = openLanes(3, { ring() {} })
  for (const id of ['a1', 'a2', 'a3', 'a4', 'a5']) void inLane(row('a', id), workOn(id))
  void inLane(row('b', 'b1'), workOn('b1'))
  expect(started).toEqual(['a1', 'a2', 'a3', 'b1'])
})

test('what was passed over is rung for as lanes of its organization get free, each once', async () => {
  const { workOn, end } = openWorks()
  const rung: string[] = []
  const inLane = openLanes(1, { ring: ({ id }) => rung.push(id) })
  const other = inLane(row('b', 'b1'), workOn('b1'))
  const first = inLane(row('a', 'a1'), workOn('a1'))
  for (const id of ['a2', 'a3', 'a2']) await inLane(row('a', id), workOn(id))
  end('b1')
  await other
  expect(rung).toEqual([])
  end('a1')
  await first
  expect(rung).toEqual(['a2'])
  const second = inLane(row('a', 'a2'), workOn('a2'))
  end('a2')
  await second
  expect(rung).toEqual(['a2', 'a3'])
})

test('a lane is free again also after work that failed', async () => {
  const inLane = openLanes(1, { ring() {} })
  await expect(inLane(row('a', 'a1'), () => Promise.reject(new Error('it failed')))).rejects.toThrow('it failed')
  const { started, workOn } = openWorks()
  void inLane(row('a', 'a2'), workOn('a2'))
  expect(started).toEqual(['a2'])
})
