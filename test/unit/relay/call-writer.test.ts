import { setTimeout as sleep } from 'node:timers/promises'
import { expect, test, vi } from 'vitest'
import type { Db } from '#database/client.ts'
import { newId } from '#platform/ids.ts'
import { createCallWriter } from '#relay/usage/call-writer.ts'

/** A fake of the connection, which keeps what it is given. */
function openFakeDb() {
  const statements: { gone: string[]; opened: { id: string }[]; ended: { id: string; model: string }[] }[] = []
  const faults: Error[] = []
  const query = async ({ values: [gone, , opened, ended] }: { values: [string[], string, string, string] }) => {
    const fault = faults.shift()
    if (fault) throw fault
    statements.push({ gone, opened: JSON.parse(opened), ended: JSON.parse(ended) })
  }
  return { db: { $client: { query } } as unknown as Db, statements, faults }
}

const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() } as never
const newCall = () => ({
  id: newId(),
  organizationId: newId(),
  instanceId: newId(),
  provider: 'openai' as const,
  beganAt: performance.now(),
  model: 'gpt\0-\ud800',
  session: null,
  cause: null,
})

test('a short call is one row, and a long one has a row of its own while it is open', async () => {
  const { db, statements } = openFakeDb()
  const writer = createCallWriter(db, newId(), log)
  const [short, long] = [newCall(), newCall()]
  writer.begin(short)
  writer.begin(long)
  writer.end(short, 'answered', null)
  await sleep(100)
  writer.end(long, 'cut', null)
  await sleep(100)
  expect(statements).toHaveLength(2)
  expect(statements[0]).toMatchObject({ gone: [], opened: [{ id: long.id }], ended: [{ id: short.id }] })
  expect(statements[1]).toMatchObject({ gone: [long.id], opened: [], ended: [{ id: long.id, model: 'gpt-\ufffd' }] })
})

test('an open call whose request tells more is written again', async () => {
  const { db, statements } = openFakeDb()
  const writer = createCallWriter(db, newId(), log)
  const call = newCall()
  writer.begin(call)
  await sleep(100)
  writer.begin(Object.assign(call, { model: 'gpt-5' }))
  await sleep(100)
  writer.begin(call)
  writer.end(call, 'answered', null)
  await writer.close(5000)
  expect(statements).toMatchObject([
    { gone: [], opened: [{ id: call.id }] },
    { gone: [], opened: [{ id: call.id, model: 'gpt-5' }] },
    { gone: [call.id], opened: [], ended: [{ id: call.id }] },
  ])
})

test('a call that is dropped leaves nothing', async () => {
  const { db, statements } = openFakeDb()
  const writer = createCallWriter(db, newId(), log)
  const [quick, slow] = [newCall(), newCall()]
  writer.begin(quick)
  writer.drop(quick)
  writer.begin(slow)
  await sleep(100)
  writer.drop(slow)
  await sleep(100)
  expect(statements).toMatchObject([
    { gone: [], opened: [{ id: slow.id }], ended: [] },
    { gone: [slow.id], opened: [], ended: [] },
  ])
})

test('what ends while the database is away is written once it is back', async () => {
  const { db, statements, faults } = openFakeDb()
  faults.push(new Error('connection refused'))
  const writer = createCallWriter(db, newId(), log)
  const calls = Array.from({ length: 1200 }, newCall)
  for (const call of calls) writer.begin(call)
  await sleep(60)
  for (const call of calls) writer.end(call, 'answered', null)
  expect(statements).toEqual([])
  await writer.close(5000)
  expect(statements.flatMap(({ ended }) => ended.map(({ id }) => id))).toEqual(calls.map(({ id }) => id))
})

test('the end waits no longer than it is given', async () => {
  const { db, faults } = openFakeDb()
  faults.push(...Array.from({ length: 10 }, () => new Error('connection refused')))
  const writer = createCallWriter(db, newId(), log)
  const call = newCall()
  writer.begin(call)
  writer.end(call, 'answered', null)
  const began = performance.now()
  await writer.close(200)
  expect(performance.now() - began).toBeLessThan(1500)
})

test('data that PostgreSQL refuses does not hold up what comes after it', async () => {
  const { db, statements, faults } = openFakeDb()
  faults.push(Object.assign(new Error('numeric field overflow'), { code: '22003' }))
  const writer = createCallWriter(db, newId(), log)
  const [bad, good] = [newCall(), newCall()]
  writer.begin(bad)
  writer.end(bad, 'answered', null)
  await sleep(100)
  writer.begin(good)
  writer.end(good, 'answered', null)
  await writer.close(5000)
  expect(statements.flatMap(({ ended }) => ended.map(({ id }) => id))).toEqual([good.id])
})

test('of many calls in one statement only the one that PostgreSQL refuses is lost', async () => {
  const { db, statements } = openFakeDb()
  const calls = Array.from({ length: 500 }, newCall)
  const bad = calls[300]?.id
  const accept = db.$client.query as unknown as (query: { values: string[] }) => Promise<void>
  let asked = 0
  db.$client.query = (async (query: { values: string[] }) => {
    asked += 1
    if (query.values[3]?.includes(bad ?? ''))
      throw Object.assign(new Error('time zone not recognized'), { code: '22023' })
    await accept(query)
  }) as never
  const writer = createCallWriter(db, newId(), log)
  for (const call of calls) {
    writer.begin(call)
    writer.end(call, 'answered', null)
  }
  await writer.close(5000)
  const written = statements.flatMap(({ ended }) => ended.map(({ id }) => id))
  expect(written).toEqual(calls.map(({ id }) => id).filter((id) => id !== bad))
  expect(asked).toBeLessThan(60)
})
