import { pino } from 'pino'
import { expect, onTestFinished, test, vi } from 'vitest'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { runResponse } from '#api/responses/run-response.ts'
import type { ResponseStore } from '#api/responses/store/response-store.ts'
import { AppError } from '#errors/app-error.ts'
import type { Caller } from '#http/caller.ts'
import type { RunningGateway } from '#instances/find.ts'
import { createVault } from '#platform/secrets.ts'
import type { TurnLines } from '#turns/line.ts'
import { serverSentEvents } from '#turns/reply.ts'
import { createTurnRunner, type TurnRunner } from '#turns/runner.ts'
import { defaultTurnTimeouts } from '#turns/turn.ts'
import { present } from '../../support/present.ts'
import { runnerDeps } from '../../support/turn-routes.ts'

const freeLines: TurnLines = {
  enter: async () => ({ mustWait: false, begun: Promise.resolve(), leave: () => {} }),
  close: async () => {},
}

function begin(ask: (runner: TurnRunner) => TurnRunner['ask'], lines = freeLines) {
  const runner = createTurnRunner(defaultTurnTimeouts, runnerDeps)
  const turn = runner.begin()
  const finish = vi.fn<(response: ResponseObject, json: string) => void>()
  const store = { begin: () => {}, finish } as unknown as ResponseStore
  const gateway: RunningGateway = {
    organizationId: 'o',
    endpoint: { kind: 'tcp', host: '127.0.0.1', port: 9 },
    token: 't',
    provider: 'openai',
    release: 'v1',
    model: 'gpt-4o',
    unlistedModels: [],
  }
  const turns = {
    admission: { admit: async () => gateway, begin: async () => {} },
    runner: { ...runner, watch: () => {}, ask: ask(runner) },
    lines,
  }
  const run = runResponse({ turns, store, vault: createVault(Buffer.alloc(32)) }, turn, {
    caller: {} as Caller,
    session: { organizationId: 'o', instanceId: 'i', sessionKey: 's' },
    body: { model: 'openclaw', input: 'hello' } as never,
    isStreamed: true,
    log: pino({ level: 'silent' }),
  })
  return { turn, finish, run }
}
const neverEnds: (runner: TurnRunner) => TurnRunner['ask'] = () => async (turn) => ({
  [Symbol.asyncIterator]: () => ({
    next: () => new Promise((_, reject) => turn.signal.addEventListener('abort', () => reject(turn.signal.reason))),
  }),
})

function expectFailedOnce(finish: ReturnType<typeof begin>['finish'], code: string) {
  expect(finish).toHaveBeenCalledOnce()
  const [response, json] = present(finish.mock.calls[0])
  expect(response).toMatchObject({ status: 'failed', error: { code } })
  expect(JSON.parse(json)).toEqual(response)
}

test('a turn whose stream is left is stored with the reason of its end', async () => {
  const { turn, finish, run } = begin(neverEnds)
  await run.next()
  turn.end(new Error('ended'))
  expect(finish).not.toHaveBeenCalled()
  await run.return('')
  expectFailedOnce(finish, 'internal')
})

test('a stream whose turn waits has a sign of life every 15 s, and tells why the wait failed', async () => {
  vi.useFakeTimers()
  onTestFinished(() => void vi.useRealTimers())
  const { promise: begun, reject } = Promise.withResolvers<void>()
  const leave = vi.fn<() => void>()
  const lines = { ...freeLines, enter: async () => ({ mustWait: true, begun, leave }) }
  const { turn, finish, run } = begin((runner) => runner.ask, lines)
  const batches = serverSentEvents(run, ({ type }) => `${type} `)
  expect((await batches.next()).value).toBe('response.created response.queued ')
  expect(turn.waitedMs).toBeNull()
  for (let sign = 0; sign < 2; sign += 1) {
    const next = batches.next()
    await vi.advanceTimersByTimeAsync(14_900)
    expect(await Promise.race([next, 'none'])).toBe('none')
    await vi.advanceTimersByTimeAsync(100)
    expect((await next).value).toBe(': waiting\n\n')
  }
  reject(new AppError('unavailable', 'no database'))
  expect((await batches.next()).value).toBe('response.in_progress ')
  expect((await batches.next()).value).toBe('response.failed ')
  expectFailedOnce(finish, 'unavailable')
  expect(leave).toHaveBeenCalled()
})

test('a turn leaves the line when its reader leaves, and when it fails', async () => {
  const leave = vi.fn<() => void>()
  const lines = { ...freeLines, enter: async () => ({ mustWait: false, begun: Promise.resolve(), leave }) }
  const { run } = begin(neverEnds, lines)
  await run.next()
  expect(leave).not.toHaveBeenCalled()
  await run.return('')
  expect(leave).toHaveBeenCalled()
  leave.mockClear()
  const failing = begin(() => () => Promise.reject(new AppError('gateway_unreachable', 'gone')), lines)
  await expect(failing.run.next()).rejects.toThrow('gone')
  expect(leave).toHaveBeenCalled()
})
