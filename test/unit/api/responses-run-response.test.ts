import { setImmediate } from 'node:timers/promises'
import { pino } from 'pino'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import type { StreamEvent } from '#api/responses/format/event-schemas.ts'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { runResponse } from '#api/responses/run-response.ts'
import type { ResponseStore } from '#api/responses/store/response-store.ts'
import { AppError } from '#errors/app-error.ts'
import type { Caller } from '#http/caller.ts'
import type { RunningGateway } from '#instances/find.ts'
import type { OnRunEvent } from '#openclaw/gateway/gateway-socket.ts'
import type { RunEvent } from '#openclaw/gateway/run-events.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import { createVault } from '#platform/secrets.ts'
import type { AgentEvent } from '#turns/gateway-answer.ts'
import type { TurnLines } from '#turns/line.ts'
import { serverSentEvents } from '#turns/reply.ts'
import { createTurnRunner, type TurnRunner } from '#turns/runner.ts'
import { defaultTurnTimeouts } from '#turns/turn.ts'
import { present } from '../../support/present.ts'
import { expectWholeStream } from '../../support/response-schemas.ts'
import { runnerDeps } from '../../support/turn-routes.ts'

const freeLines: TurnLines = {
  enter: async () => ({ mustWait: false, begun: Promise.resolve(), leave: () => {} }),
  close: async () => {},
}

const noWatches: Watches = { open: () => Promise.reject(new Error('not to be opened')), close: () => {} }

interface Options {
  lines?: TurnLines
  watches?: Watches
  fields?: object
  isStreamed?: boolean
}

function begin(
  ask: (runner: TurnRunner) => TurnRunner['ask'],
  { lines = freeLines, watches = noWatches, fields = {}, isStreamed = true }: Options = {},
) {
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
    asks: false,
  }
  const turns = {
    admission: { admit: async () => gateway, begin: async () => {} },
    runner: { ...runner, watch: () => {}, ask: ask(runner) },
    lines,
  }
  const run = runResponse({ db: {} as never, turns, store, watches, vault: createVault(Buffer.alloc(32)) }, turn, {
    caller: {} as Caller,
    session: { organizationId: 'o', instanceId: 'i', sessionKey: 's' },
    body: { model: 'openclaw', input: 'hello', ...fields } as never,
    isStreamed,
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
  const { turn, finish, run } = begin((runner) => runner.ask, { lines })
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
  const { run } = begin(neverEnds, { lines })
  await run.next()
  expect(leave).not.toHaveBeenCalled()
  await run.return('')
  expect(leave).toHaveBeenCalled()
  leave.mockClear()
  const failing = begin(() => () => Promise.reject(new AppError('gateway_unreachable', 'gone')), { lines })
  await expect(failing.run.next()).rejects.toThrow('gone')
  expect(leave).toHaveBeenCalled()
})

describe('include: chowder.tools', () => {
  const include = ['chowder.tools']
  const answered: AgentEvent[] = [
    { kind: 'text', text: 'done' },
    { kind: 'end', status: 'completed', usage: null },
  ]
  const toolEvent = (runId: string, status: 'in_progress' | 'completed', name = 'exec'): RunEvent => ({
    kind: 'tool',
    runId,
    id: 'a',
    name,
    title: 'Exec it',
    status,
    at: status === 'completed' ? 5250 : 5000,
  })

  /** A gateway that uses tools, and answers once they have been told. */
  function gatewayWithTools() {
    const released = vi.fn<() => void>()
    let tell: OnRunEvent | undefined
    const open = vi.fn<Watches['open']>(async (_gateway, onRunEvent) => {
      tell = onRunEvent
      return { gateway: {} as never, release: released }
    })
    const ask =
      () =>
      async (_turn: unknown, { onRun }: { onRun?: (runId: string) => void }) =>
        (async function* () {
          onRun?.('resp_own')
          for (const status of ['in_progress', 'completed'] as const) {
            tell?.(toolEvent('resp_other', status))
            tell?.(toolEvent('resp_own', status))
            tell?.(toolEvent('resp_own', status, 'get_weather'))
          }
          await setImmediate()
          yield answered
        })()
    return { watches: { open, close: () => {} }, ask, open, released }
  }
  async function typesOf(run: ReturnType<typeof begin>['run']) {
    const events: StreamEvent[] = []
    for await (const batch of run) events.push(...batch.map(({ json }) => JSON.parse(json()) as StreamEvent))
    if (events.length > 0) expectWholeStream(events)
    return events
  }

  test('adds the events of the own tools of the turn to its stream', async () => {
    const { watches, ask, released } = gatewayWithTools()
    const tools = [{ type: 'function', name: 'get_weather' }]
    const events = await typesOf(begin(ask, { watches, fields: { include, tools } }).run)
    const tool = { id: 'a', name: 'exec', title: 'Exec it', started_at: 5 }
    expect(events.slice(2, 4)).toEqual([
      { type: 'chowder:tool.started', sequence_number: 2, tool: { ...tool, status: 'in_progress' } },
      { type: 'chowder:tool.ended', sequence_number: 3, tool: { ...tool, status: 'completed', duration_ms: 250 } },
    ])
    expect(events.at(-1)).toMatchObject({ type: 'response.completed', response: { status: 'completed' } })
    expect(released).toHaveBeenCalledOnce()
  })

  test.each([
    ['without it', { fields: {} }],
    ['without a stream', { fields: { include }, isStreamed: false }],
  ])('opens no connection %s', async (_name, options) => {
    const { watches, ask, open } = gatewayWithTools()
    const events = await typesOf(begin(ask, { watches, ...options }).run)
    expect(events.filter((event) => 'tool' in event)).toEqual([])
    expect(open).not.toHaveBeenCalled()
  })

  test('costs no turn when the gateway accepts no connection', async () => {
    const { ask } = gatewayWithTools()
    const events = await typesOf(begin(ask, { fields: { include } }).run)
    expect(events.at(-1)).toMatchObject({ type: 'response.completed' })
  })

  test('gives the connection back when the turn fails, and when its reader leaves', async () => {
    const failing = gatewayWithTools()
    const refuse = () => () => Promise.reject(new AppError('gateway_unreachable', 'gone'))
    const refused = begin(refuse, { watches: failing.watches, fields: { include } })
    await expect(refused.run.next()).rejects.toThrow('gone')
    expect(failing.released).toHaveBeenCalledOnce()
    const left = gatewayWithTools()
    const { run } = begin(left.ask, { watches: left.watches, fields: { include } })
    await run.next()
    await run.return('')
    await setImmediate()
    expect(left.released).toHaveBeenCalledOnce()
  })
})
