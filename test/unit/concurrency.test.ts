import { expect, test } from 'vitest'
import type { InstanceRef } from '#instances/queue.ts'
import { createOrganizationConcurrency } from '#lifecycle/concurrency.ts'

const ref = (organizationId: string, id: string): InstanceRef => ({ organizationId, id, generation: 1, leaseToken: 0 })

/** Records which work was started, and ends it on demand. */
function createWork() {
  const started: string[] = []
  const ends = new Map<string, () => void>()
  const workOn = (id: string) => () => {
    started.push(id)
    return new Promise<void>((resolve) => ends.set(id, resolve))
  }
  return { started, workOn, end: (id: string) => ends.get(id)?.() }
}

test('no organization runs more than its limit, and others run beside it', () => {
  const { started, workOn } = createWork()
  const { run } = createOrganizationConcurrency(3, { enqueue() {} })
  for (const id of ['a1', 'a2', 'a3', 'a4', 'a5']) void run(ref('a', id), workOn(id))
  void run(ref('b', 'b1'), workOn('b1'))
  expect(started).toEqual(['a1', 'a2', 'a3', 'b1'])
})

test('a deferred instance is enqueued once, when a run of its organization has ended', async () => {
  const { workOn, end } = createWork()
  const enqueued: string[] = []
  const { run } = createOrganizationConcurrency(1, { enqueue: ({ id }) => enqueued.push(id) })
  const other = run(ref('b', 'b1'), workOn('b1'))
  const first = run(ref('a', 'a1'), workOn('a1'))
  for (const id of ['a2', 'a3', 'a2']) await run(ref('a', id), workOn(id))
  end('b1')
  await other
  expect(enqueued).toEqual([])
  end('a1')
  await first
  expect(enqueued).toEqual(['a2'])
  const second = run(ref('a', 'a2'), workOn('a2'))
  end('a2')
  await second
  expect(enqueued).toEqual(['a2', 'a3'])
})

test('F28: organizations whose runs all hang hold one place each beside the first, and another still runs', async () => {
  const { started, workOn, end } = createWork()
  const enqueued: string[] = []
  const { run, total } = createOrganizationConcurrency(2, { enqueue: ({ id }) => enqueued.push(id) })
  const first = ['a1', 'a2', 'a3'].map((id) => run(ref('a', id), workOn(id)))
  for (const id of ['b1', 'b2', 'c1', 'c2', 'd1']) void run(ref(id[0] ?? '', id), workOn(id))
  expect(started).toEqual(['a1', 'a2', 'b1', 'c1', 'd1'])
  expect(total).toBeGreaterThan(started.length)
  end('d1')
  await Promise.resolve()
  expect(enqueued, 'all that wait have a place').toEqual([])
  end('a1')
  await first[0]
  expect(enqueued, 'there are still as many as one may have').toEqual([])
  end('a2')
  await first[1]
  expect(enqueued).toEqual(['a3'])
})

test('a run that failed counts as ended', async () => {
  const { run } = createOrganizationConcurrency(1, { enqueue() {} })
  await expect(run(ref('a', 'a1'), () => Promise.reject(new Error('it failed')))).rejects.toThrow('it failed')
  const { started, workOn } = createWork()
  void run(ref('a', 'a2'), workOn('a2'))
  expect(started).toEqual(['a2'])
})

test('a sweep enqueues no more of an organization than can run or be deferred, and no deferred instance', async () => {
  const { workOn, end } = createWork()
  const enqueued: string[] = []
  const { run, sweepQueue } = createOrganizationConcurrency(2, { enqueue: ({ id }) => enqueued.push(id) })
  const all = Array.from({ length: 100 }, (_, index) => `a${index}`)
  const sweep = () => {
    enqueued.length = 0
    const queue = sweepQueue()
    for (const id of all) queue.enqueue(ref('a', id))
    queue.enqueue(ref('b', 'b0'))
    return enqueued
  }
  expect(sweep()).toEqual([...all.slice(0, 2 + 64), 'b0'])
  const works = all.slice(0, 2).map((id) => run(ref('a', id), workOn(id)))
  for (const id of all.slice(10, 40)) await run(ref('a', id), workOn(id))
  all.splice(0, 2) // leased, and so not due
  expect(sweep()).toEqual([...all.slice(0, 8), ...all.slice(38, 38 + 64 - 30 - 8), 'b0'])
  enqueued.length = 0
  end('a0')
  await works[0]
  expect(enqueued).toEqual(['a10'])
  expect(sweep(), 'in case that job was lost').toContain('a10')
  end('a1')
  await works[1]
  expect(sweep(), 'nothing else enqueues it').toContain('a12')
})

test('a sweep enqueues deferred instances while their organization is below its limit', async () => {
  const { workOn, end } = createWork()
  const enqueued: string[] = []
  const { run, sweepQueue } = createOrganizationConcurrency(2, { enqueue: ({ id }) => enqueued.push(id) })
  void run(ref('a', 'hangs'), workOn('hangs'))
  const other = run(ref('a', 'ends'), workOn('ends'))
  for (const id of ['a1', 'a2']) await run(ref('a', id), workOn(id))
  end('ends')
  await other
  expect(enqueued.splice(0)).toEqual(['a1'])
  // Another worker took that instance, so this worker stays below the limit.
  sweepQueue().enqueue(ref('a', 'a2'))
  expect(enqueued).toEqual(['a2'])
})
