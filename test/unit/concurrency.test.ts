import { expect, test } from 'vitest'
import type { InstanceRef } from '#instances/queue.ts'
import { createOrganizationConcurrency } from '#lifecycle/concurrency.ts'

const row = (organizationId: string, id: string): InstanceRef => ({ organizationId, id, generation: 1, leaseToken: 0 })

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
  const { run } = createOrganizationConcurrency(3, { enqueue() {} })
  for (const id of ['a1', 'a2', 'a3', 'a4', 'a5']) void run(row('a', id), workOn(id))
  void run(row('b', 'b1'), workOn('b1'))
  expect(started).toEqual(['a1', 'a2', 'a3', 'b1'])
})

test('what was passed over is rung for as lanes of its organization get free, each once', async () => {
  const { workOn, end } = openWorks()
  const rung: string[] = []
  const { run } = createOrganizationConcurrency(1, { enqueue: ({ id }) => rung.push(id) })
  const other = run(row('b', 'b1'), workOn('b1'))
  const first = run(row('a', 'a1'), workOn('a1'))
  for (const id of ['a2', 'a3', 'a2']) await run(row('a', id), workOn(id))
  end('b1')
  await other
  expect(rung).toEqual([])
  end('a1')
  await first
  expect(rung).toEqual(['a2'])
  const second = run(row('a', 'a2'), workOn('a2'))
  end('a2')
  await second
  expect(rung).toEqual(['a2', 'a3'])
})

test('a lane is free again also after work that failed', async () => {
  const { run } = createOrganizationConcurrency(1, { enqueue() {} })
  await expect(run(row('a', 'a1'), () => Promise.reject(new Error('it failed')))).rejects.toThrow('it failed')
  const { started, workOn } = openWorks()
  void run(row('a', 'a2'), workOn('a2'))
  expect(started).toEqual(['a2'])
})

test('a sweep rings for no more of an organization than can be of use, and not for what is kept', async () => {
  const { workOn, end } = openWorks()
  const rung: string[] = []
  const { run, sweepQueue: bellOfSweep } = createOrganizationConcurrency(2, { enqueue: ({ id }) => rung.push(id) })
  const all = Array.from({ length: 100 }, (_, index) => `a${index}`)
  const sweep = () => {
    rung.length = 0
    const queue = bellOfSweep()
    for (const id of all) queue.enqueue(row('a', id))
    queue.enqueue(row('b', 'b0'))
    return rung
  }
  expect(sweep()).toEqual([...all.slice(0, 2 + 64), 'b0'])
  const works = all.slice(0, 2).map((id) => run(row('a', id), workOn(id)))
  for (const id of all.slice(10, 40)) await run(row('a', id), workOn(id))
  all.splice(0, 2) // leased, and so not due
  expect(sweep()).toEqual([...all.slice(0, 8), ...all.slice(38, 38 + 64 - 30 - 8), 'b0'])
  rung.length = 0
  end('a0')
  await works[0]
  expect(rung).toEqual(['a10'])
  expect(sweep(), 'had that bell been lost').toContain('a10')
  end('a1')
  await works[1]
  expect(sweep(), 'nobody else rings').toContain('a12')
})

test('a sweep rings for what is kept while a lane of its organization is free', async () => {
  const { workOn, end } = openWorks()
  const rung: string[] = []
  const { run, sweepQueue: bellOfSweep } = createOrganizationConcurrency(2, { enqueue: ({ id }) => rung.push(id) })
  void run(row('a', 'hangs'), workOn('hangs'))
  const other = run(row('a', 'ends'), workOn('ends'))
  for (const id of ['a1', 'a2']) await run(row('a', id), workOn(id))
  end('ends')
  await other
  expect(rung.splice(0)).toEqual(['a1'])
  // Another worker took that one: this one's lane stays free.
  bellOfSweep().enqueue(row('a', 'a2'))
  expect(rung).toEqual(['a2'])
})
