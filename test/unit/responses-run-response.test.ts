import { pino } from 'pino'
import { expect, onTestFinished, test, vi } from 'vitest'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import type { TurnLines } from '#api/responses/lines/turn-lines.ts'
import { runResponse } from '#api/responses/run-response.ts'
import type { ResponseStore } from '#api/responses/store/response-store.ts'
import { defaultTurnTimeouts } from '#api/responses/turns/turn.ts'
import { serverSentEvents } from '#api/responses/turns/turn-reply.ts'
import { createTurnRunner, type TurnRunner } from '#api/responses/turns/turn-runner.ts'
import { AppError } from '#platform/errors.ts'
import { present } from '../support/present.ts'

/** JSON.parse accepts an object this deep, and JSON.stringify does not. */
let deep = {}
for (let depth = 0; depth < 100_000; depth++) deep = { deep }

const freeLines: TurnLines = {
  enter: async () => ({ mustWait: false, begun: Promise.resolve(), leave: () => {} }),
  close: async () => {},
}

function begin(ask: (turns: TurnRunner) => TurnRunner['ask'], tools: object[] = [], lines = freeLines) {
  const turns = createTurnRunner(defaultTurnTimeouts, async () => {})
  const turn = turns.begin()
  const finish = vi.fn<(response: ResponseObject, json: string) => void>()
  const store = { begin: () => {}, onCancelled: () => {}, finish } as unknown as ResponseStore
  const responding = runResponse({ turns: { ...turns, watch: () => {}, ask: ask(turns) }, store, lines }, turn, {
    session: { organizationId: 'o', instanceId: 'i', sessionKey: 's' },
    visible: { instanceIds: null, sessions: null },
    gateway: {
      organizationId: 'o',
      endpoint: { kind: 'tcp', host: '127.0.0.1', port: 9 },
      token: 't',
      provider: 'openai',
      release: 'v1',
      model: 'gpt-4o',
      unlistedModels: [],
    },
    body: { model: 'openclaw', input: 'hello', tools } as never,
    begin: async () => {},
    isStreamed: true,
    log: pino({ level: 'silent' }),
  })
  return { turns, turn, finish, responding }
}
const neverEnds: TurnRunner['ask'] = async () => ({
  events: { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) },
  askedAt: 0,
  answeredAt: 0,
})
const tooDeep = [{ type: 'function', name: 'f', parameters: deep }]

function expectFailedOnce(finish: ReturnType<typeof begin>['finish'], code: string) {
  expect(finish).toHaveBeenCalledOnce()
  const [response, json] = present(finish.mock.calls[0])
  expect(response).toMatchObject({ status: 'failed', error: { code } })
  expect(JSON.parse(json)).toEqual(response)
}

test('a response without JSON is stored as failed', async () => {
  const { finish, responding } = begin((turns) => turns.ask, tooDeep)
  await expect(responding).rejects.toThrow(RangeError)
  expectFailedOnce(finish, 'internal')
})

test('a response without JSON does not fail the caller that finishes its turn', async () => {
  const { turns, turn, finish, responding } = begin(() => neverEnds, tooDeep)
  await responding
  turns.finish(turn)
  expectFailedOnce(finish, 'internal')
})

test('a turn that is finished before its stream was read is stored with the reason of its end', async () => {
  const { turns, turn, finish, responding } = begin(() => neverEnds)
  await (await responding).events().next()
  turn.end(new Error('ended'))
  expect(finish).not.toHaveBeenCalled()
  turns.finish(turn)
  expectFailedOnce(finish, 'internal')
})

test('a stream whose turn waits has a sign of life every 15 s, and tells why the wait failed', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const { promise: begun, reject } = Promise.withResolvers<void>()
  const leave = vi.fn<() => void>()
  const lines = { ...freeLines, enter: async () => ({ mustWait: true, begun, leave }) }
  const { finish, responding } = begin((turns) => turns.ask, [], lines)
  const { answer, events } = await responding
  expect(answer).toBeNull()
  const batches = serverSentEvents(events(), ({ type }) => `${type} `)
  expect((await batches.next()).value).toBe('response.created response.queued ')
  for (let sign = 0; sign < 2; sign += 1) {
    const next = batches.next()
    await vi.advanceTimersByTimeAsync(14_900)
    expect(await Promise.race([next, 'none'])).toBe('none')
    await vi.advanceTimersByTimeAsync(100)
    expect((await next).value).toBe(': waiting\n\n')
  }
  reject(new AppError('database_unavailable', 'no database'))
  expect((await batches.next()).value).toBe('response.in_progress ')
  expect((await batches.next()).value).toBe('response.failed ')
  expectFailedOnce(finish, 'database_unavailable')
  expect(leave).toHaveBeenCalled()
})

test('a turn leaves the line when its agent has ended, and when it fails', async () => {
  const leave = vi.fn<() => void>()
  const lines = { ...freeLines, enter: async () => ({ mustWait: false, begun: Promise.resolve(), leave }) }
  const { turns, turn, responding } = begin(() => neverEnds, [], lines)
  await responding
  expect(leave).not.toHaveBeenCalled()
  turns.finish(turn)
  expect(leave).toHaveBeenCalled()
  leave.mockClear()
  const failing = begin(() => () => Promise.reject(new AppError('gateway_unreachable', 'gone')), [], lines)
  await expect(failing.responding).rejects.toThrow('gone')
  expect(leave).toHaveBeenCalled()
})
