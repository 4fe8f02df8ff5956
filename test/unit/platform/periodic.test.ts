import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { poll } from '#platform/poll.ts'

let stopping: AbortController
let logged: string[]
let ended: Promise<void>

beforeEach(() => {
  stopping = new AbortController()
  logged = []
})
afterEach(async () => {
  stopping.abort()
  await ended
})

function start(...tasks: (Partial<PeriodicTask> & Pick<PeriodicTask, 'run'>)[]): void {
  const log = { info: (text: string) => logged.push(text), warn: (_: object, text: string) => logged.push(text) }
  const whole = tasks.map((task) => ({ name: 'counting', everyMs: 1, timeoutMs: 10_000, ...task }))
  ended = runPeriodically(whole, stopping.signal, log as never)
}

const until = async (check: () => boolean) => expect(await poll(check, { pauseMs: 1, timeoutMs: 10_000 })).toBe(true)

describe('periodic tasks', () => {
  test('run at once and again after their own pause', async () => {
    let runs = 0
    let others = 0
    start(
      {
        async run() {
          runs += 1
        },
      },
      {
        everyMs: 60_000,
        async run() {
          others += 1
        },
      },
    )
    await until(() => runs >= 5)
    expect(others).toBe(1)
  })

  test('may have a pause that depends on the last run', async () => {
    let runs = 0
    start({
      everyMs: () => (runs < 3 ? 1 : 60_000),
      async run() {
        runs += 1
      },
    })
    await until(() => runs === 3)
    await poll(() => false, { pauseMs: 20, timeoutMs: 20 })
    expect(runs).toBe(3)
  })

  test('never overlap, even when a run does not end at its timeout', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    const signals: AbortSignal[] = []
    start({
      timeoutMs: 1,
      async run(signal) {
        signals.push(signal)
        await promise
      },
    })
    await until(() => signals[0]?.aborted === true)
    expect(signals[0]?.reason).toMatchObject({ name: 'TimeoutError' })
    expect(signals).toHaveLength(1)
    resolve()
    await until(() => signals.length > 1)
  })

  test('are logged once when they fail, and once when they work again', async () => {
    let runs = 0
    start({
      async run() {
        runs += 1
        if (runs <= 3 || runs === 5) throw new Error('no')
      },
    })
    await until(() => runs > 6)
    expect(logged).toEqual(['counting failed', 'counting works again', 'counting failed', 'counting works again'])
  })

  test('are aborted at the end, which waits for them, and do not count as failed', async () => {
    let hasEnded = false
    start({
      async run(signal) {
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        await poll(() => false, { pauseMs: 5, timeoutMs: 5 })
        hasEnded = true
        throw signal.reason
      },
    })
    stopping.abort()
    await ended
    expect(hasEnded).toBe(true)
    expect(logged).toEqual([])
  })
})
