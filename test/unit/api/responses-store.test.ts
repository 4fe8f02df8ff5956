import { randomBytes } from 'node:crypto'
import { setImmediate as turnOfTheLoop } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { readRequest } from '#api/responses/format/request.ts'
import { inProgress, newResponseId, responseObject, toUuid } from '#api/responses/format/response-writer.ts'
import type { StartedResponse } from '#api/responses/store/response-rows.ts'
import { createResponseStore, type ResponseStore } from '#api/responses/store/response-store.ts'
import type { Db } from '#database/client.ts'
import { createVault } from '#platform/secrets.ts'

const { echo } = readRequest(
  { model: 'gpt-4o', input: 'hello' },
  { provider: 'openai', release: 'v1', model: 'gpt-4o' },
)
const place = { organizationId: 'o', instanceId: 'i', sessionKey: 's' }

let isUnavailable: boolean
/** The ids of the rows that were written, with the name of the statement. */
let written: [id: string, name: string][]
let warned: unknown[]
let store: ResponseStore

beforeEach(() => {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout', 'setInterval', 'clearInterval', 'performance'] })
  isUnavailable = false
  written = []
  warned = []
  const query = async ({ name, values }: { name: string; values: string[][] }) => {
    if (isUnavailable) throw new Error('Connection terminated unexpectedly')
    if (name !== 'cancelled_responses') for (const id of values[0] ?? []) written.push([id, name])
    return { rows: [] }
  }
  const log = { warn: (fields: { err: Error }) => void warned.push(fields.err.message) }
  store = createResponseStore({ $client: { query } } as unknown as Db, createVault(randomBytes(32)), 'p', log as never)
})
afterEach(async () => {
  isUnavailable = false
  const closed = store.close()
  await pass(6000)
  await closed
  vi.useRealTimers()
})

/** Advances the time, and runs what is due then. */
async function pass(ms: number): Promise<void> {
  for (let left = ms; left >= 0; left -= 1000) {
    await vi.advanceTimersByTimeAsync(Math.min(left, 1000))
    for (let turns = 0; turns < 4; turns += 1) await turnOfTheLoop()
  }
}

function begin(over: Partial<StartedResponse> = {}) {
  const id = newResponseId()
  const response = responseObject({ id, createdAt: 1, echo }, inProgress, [])
  const turn = { end: () => {} }
  store.begin({
    ...place,
    id,
    turn,
    isStored: true,
    response: () => response,
    input: () => [],
    answeredCallIds: [],
    ...over,
  })
  const ended = { ...response, status: 'completed' as const }
  return { id, uuid: toUuid(id), end: (json = JSON.stringify(ended)) => store.finish(ended, json) }
}

describe('the end of a turn', () => {
  test.each([
    ['whose row was inserted', 'end_responses', 1000],
    ['whose row was not inserted', 'insert_responses', 0],
  ])('is written once the database is available again after a minute: a turn %s', async (_what, name, beforeMs) => {
    const turn = begin()
    await pass(beforeMs)
    isUnavailable = true
    turn.end()
    await pass(60_000)
    isUnavailable = false
    written.length = 0
    await pass(6000)
    expect(written).toEqual([[turn.uuid, name]])
    expect(warned).toEqual([])
  })

  test('is given up after 5 minutes with a warning', async () => {
    const turn = begin()
    await pass(1000)
    isUnavailable = true
    turn.end()
    await pass(6 * 60_000)
    expect(warned).toEqual(['Connection terminated unexpectedly'])
  })

  test('delays a reader for some seconds only', async () => {
    const turn = begin()
    await pass(1000)
    isUnavailable = true
    turn.end()
    const reading = expect(store.find({ ...place, sessions: null }, turn.id)).rejects.toMatchObject({
      kind: 'unavailable',
    })
    await pass(11_000)
    await reading
  })

  test('delays the close for some seconds only', async () => {
    const turns = [begin(), begin()]
    await pass(1000)
    isUnavailable = true
    turns[0]?.end()
    await pass(60_000)
    turns[1]?.end()
    const closed = store.close()
    await pass(5000)
    await closed
    expect(warned).toHaveLength(2)
  })

  test('waits with at most 64 MiB of others, which are given up beyond that', async () => {
    const turns = Array.from({ length: 60 }, () => begin())
    await pass(1000)
    isUnavailable = true
    written.length = 0
    for (const turn of turns) turn.end(' '.repeat(1024 * 1024))
    await pass(10_000)
    isUnavailable = false
    await pass(6000)
    // Sealing makes each a third larger.
    expect([written.length, warned.length]).toEqual([47, 13])
  })
})

test('a response without JSON does not fail the others of its batch', async () => {
  const unwritable = () => {
    throw new RangeError('Maximum call stack size exceeded')
  }
  const turns = [begin(), begin({ input: unwritable }), begin()]
  await pass(1000)
  expect(written.map(([id]) => id)).toEqual([turns[0]?.uuid, turns[2]?.uuid])
  turns[1]?.end()
  await pass(1000)
  expect(warned).toEqual(['Maximum call stack size exceeded'])
})
