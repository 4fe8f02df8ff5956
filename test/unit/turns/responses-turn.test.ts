import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { createTurnRunner } from '#turns/runner.ts'
import { defaultTurnTimeouts, Turn, turnAbandoned } from '#turns/turn.ts'
import { runnerDeps } from '../../support/turn-routes.ts'

beforeEach(() => {
  vi.useFakeTimers()
})
afterEach(() => {
  vi.useRealTimers()
})

const seconds = (count: number) => vi.advanceTimersByTimeAsync(count * 1000)

function begin(probe: () => Promise<boolean>, isAsked = true) {
  const turn = new Turn(defaultTurnTimeouts)
  if (isAsked) turn.ask()
  const probes = vi.fn(probe)
  turn.watch(probes)
  return { turn, probes }
}

const hangs = () =>
  new Promise<boolean>((resolve) => setTimeout(() => resolve(false), defaultTurnTimeouts.probeEveryMs))

test('the health of a gateway is checked after 15 s of silence and then every 5 s', async () => {
  const { turn, probes } = begin(async () => true)
  await seconds(14.9)
  expect(probes).toHaveBeenCalledTimes(0)
  await seconds(0.2)
  expect(probes).toHaveBeenCalledTimes(1)
  await seconds(60)
  expect(probes).toHaveBeenCalledTimes(13)
  turn.end(turnAbandoned)
})

test('an agent with a healthy gateway may think until the limit of its turn', async () => {
  const { turn } = begin(async () => true)
  await seconds(15 * 60 - 1)
  expect(turn.signal.aborted).toBe(false)
  await seconds(1)
  expect(turn.signal.reason).toMatchObject({ kind: 'gateway_timeout', doNotRetry: true, message: /15 minutes/ })
})

test('10 minutes without a byte and without a successful check end the turn', async () => {
  const refusing = begin(async () => false).turn
  const throwing = begin(async () => Promise.reject(new Error('refused'))).turn
  const hanging = begin(hangs).turn
  const all = [refusing, throwing, hanging]
  await seconds(10 * 60 - 0.1)
  expect(all.map(({ signal }) => signal.aborted)).toEqual([false, false, false])
  await seconds(5.1)
  for (const { signal } of all) {
    expect(signal.reason).toBeInstanceOf(AppError)
    expect(signal.reason).toMatchObject({ code: 'gateway_timeout', kind: 'gateway_timeout', doNotRetry: true })
  }
})

test('a gateway that works for minutes and answers in between keeps its turn', async () => {
  let count = 0
  const { turn } = begin(async () => ++count % 100 === 0)
  await seconds(14 * 60)
  expect(turn.signal.aborted).toBe(false)
  turn.end(turnAbandoned)
})

test('a byte counts as an answer, also during a check', async () => {
  const { turn, probes } = begin(hangs)
  await seconds(8 * 60 + 2) // a check is open
  expect(turn.isUnanswered).toBe(true)
  turn.received()
  expect(turn.isUnanswered).toBe(false)
  await seconds(4)
  const asked = probes.mock.calls.length
  await seconds(9)
  expect(probes).toHaveBeenCalledTimes(asked)
  await seconds(6 * 60)
  expect(turn.signal.aborted).toBe(false)
  turn.end(turnAbandoned)
})

test('a turn knows whether the gateway answered the latest check', async () => {
  let isHealthy = false
  const { turn } = begin(async () => isHealthy)
  await seconds(14)
  expect(turn.isUnanswered).toBe(false)
  await seconds(2)
  expect(turn.isUnanswered).toBe(true)
  expect(turn.hung()).toMatchObject({ code: 'gateway_timeout', doNotRetry: true })
  isHealthy = true
  await seconds(5)
  expect(turn.isUnanswered).toBe(false)
  turn.end(turnAbandoned)
})

test('a turn that is finished during a check makes no further checks', async () => {
  const { turn, probes } = begin(hangs)
  await seconds(16)
  expect(probes).toHaveBeenCalledTimes(1)
  turn.finish()
  await seconds(60)
  expect(probes).toHaveBeenCalledTimes(1)
  expect(vi.getTimerCount()).toBe(0)
  expect(turn.signal.aborted).toBe(false)
})

test('a gateway that has answered is not checked, and the limit of the turn still holds', async () => {
  const { turn, probes } = begin(async () => false)
  await seconds(10)
  turn.answered()
  await seconds(15 * 60 - 11)
  expect(turn.signal.aborted).toBe(false)
  await seconds(1)
  expect(turn.signal.reason).toMatchObject({ kind: 'gateway_timeout', message: /15 minutes/ })
  expect(probes).not.toHaveBeenCalled()
})

test('a turn that begins while the server closes is ended', async () => {
  const turns = createTurnRunner(defaultTurnTimeouts, runnerDeps)
  await turns.drain(0)
  expect(turns.begin().signal.reason).toMatchObject({ kind: 'unavailable', doNotRetry: false })
  await turns.close()
})

test('R3: turns that run while the server closes may end by themselves for a time, and are ended then', async () => {
  const turns = createTurnRunner(defaultTurnTimeouts, runnerDeps)
  const [quick, slow] = [turns.begin(), turns.begin()]
  let isDrained = false
  const drained = turns.drain(60_000).then(() => {
    isDrained = true
  })
  await seconds(10)
  turns.finish(quick)
  await seconds(49)
  expect([quick.signal.aborted, slow.signal.aborted, isDrained]).toEqual([false, false, false])
  await seconds(1)
  expect(slow.signal.reason).toMatchObject({ code: 'shutting_down', doNotRetry: true })
  turns.finish(slow)
  await drained
  await turns.close()
})

test('a turn that has ended keeps its first reason, has no timers and makes no checks', async () => {
  const { turn, probes } = begin(async () => true)
  await seconds(15)
  turn.end(turnAbandoned)
  turn.end(new AppError('unavailable', 'later'))
  expect(turn.signal.reason).toBe(turnAbandoned)
  expect(vi.getTimerCount()).toBe(0)
  await seconds(60)
  expect(probes).toHaveBeenCalledTimes(1)
})

test('a turn that waits is ended like one that runs, and may be repeated', async () => {
  const waiting = begin(async () => true, false).turn
  await seconds(15 * 60)
  expect(waiting.signal.reason).toMatchObject({ code: 'turn_waited_too_long', doNotRetry: false })
  const hung = begin(async () => false, false).turn
  await seconds(10 * 60)
  expect(hung.signal.reason).toMatchObject({ code: 'gateway_timeout', doNotRetry: false })
})

test('a turn that is asked after it has waited goes on with its checks', async () => {
  const { turn, probes } = begin(async () => false, false)
  await seconds(21)
  expect(probes).toHaveBeenCalledTimes(2)
  turn.ask()
  turn.watch(probes)
  await seconds(5)
  expect(probes).toHaveBeenCalledTimes(3)
  await seconds(10 * 60)
  expect(turn.signal.reason).toMatchObject({ code: 'gateway_timeout', doNotRetry: true })
})
