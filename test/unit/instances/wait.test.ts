import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { readUntil } from '#instances/wait.ts'

test('S27: a process has 500 waiting requests, 100 of them of one organization; others are answered at once', async () => {
  const left = new AbortController()
  const answered: string[] = []
  const waits: Promise<unknown>[] = []
  const ask = (organizationId: string, count: number) => {
    for (let i = 0; i < count; i += 1) {
      const until = { organizationId, waitMs: 60_000, signal: left.signal }
      const isFinal = () => false
      waits.push(readUntil('latest', isFinal, async () => 'latest', until).then(() => answered.push(organizationId)))
    }
  }
  ask('a', 101)
  await turn()
  expect(answered).toEqual(['a'])
  for (const organizationId of ['b', 'c', 'd', 'e']) ask(organizationId, 100)
  await turn()
  expect(answered).toEqual(['a'])
  ask('f', 1)
  await turn()
  expect(answered).toEqual(['a', 'f'])

  left.abort()
  await Promise.all(waits)
  expect(answered).toHaveLength(502)
  // The places are free again.
  const again = readUntil(
    0,
    (read) => read === 1,
    async () => 1,
    {
      organizationId: 'a',
      waitMs: 1000,
      signal: new AbortController().signal,
    },
  )
  expect(await again).toBe(1)
})
