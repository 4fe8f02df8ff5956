import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { createDrain, type DrainPhase, drainPhases, drainTimeoutMs } from '#composition/drain.ts'

const phases = Object.keys(drainPhases) as DrainPhase[]
const deadlines = (ms: number) => Object.fromEntries(phases.map((phase) => [phase, ms])) as typeof drainPhases

function open(ms = 10_000) {
  const logged: string[] = []
  const closed: string[] = []
  const log = {
    info: (_: object, text: string) => logged.push(text),
    warn: (_: object, text: string) => logged.push(text),
  }
  const drain = createDrain(log as never, deadlines(ms))
  const closes = (name: string) => () => void closed.push(name)
  return { drain, logged, closed, closes }
}

describe('a drain', () => {
  test('runs its phases in order, and logs those that close something', async () => {
    const { drain, logged, closed, closes } = open()
    drain.add('worker', closes('worker'))
    drain.add('postgres', closes('postgres'))
    drain.add('connections', closes('connections'))
    drain.add('metrics', closes('metrics'))
    await drain.run({ interrupted: false })
    expect(closed).toEqual(['metrics', 'worker', 'connections', 'postgres'])
    expect(logged).toEqual(closed.map((phase) => `drain: ${phase}`))
  })

  test('closes in reverse order within a phase, and begins no phase before the previous one is over', async () => {
    const { drain, closed, closes } = open()
    drain.add('api', closes('Redis'))
    drain.add('api', async () => {
      await sleep(10)
      closed.push('server')
    })
    drain.add('queue', closes('queue'))
    await drain.run({ interrupted: false })
    expect(closed).toEqual(['server', 'Redis', 'queue'])
  })

  test.each([true, false])('passes on whether the process was interrupted: %s', async (interrupted) => {
    const { drain } = open()
    const reasons: unknown[] = []
    for (const phase of phases) drain.add(phase, (reason) => reasons.push(reason))
    await drain.run({ interrupted })
    expect(reasons).toEqual(phases.map(() => ({ interrupted })))
  })

  test('continues after a failure, also in the same phase', async () => {
    const { drain, logged, closed, closes } = open()
    drain.add('worker', closes('the other worker'))
    drain.add('worker', () => Promise.reject(new Error('no')))
    drain.add('agents', () => {
      throw new Error('neither')
    })
    drain.add('postgres', closes('postgres'))
    await drain.run({ interrupted: false })
    expect(closed).toEqual(['the other worker', 'postgres'])
    expect(logged).toEqual([
      'drain: worker',
      'drain: worker failed',
      'drain: agents',
      'drain: agents failed',
      'drain: postgres',
    ])
  })

  test('continues after the deadline of a phase', async () => {
    const { drain, logged, closed, closes } = open(20)
    drain.add('worker', () => new Promise(() => {}))
    drain.add('queue', closes('queue'))
    await drain.run({ interrupted: false })
    expect(closed).toEqual(['queue'])
    expect(logged).toEqual(['drain: worker', 'drain: worker takes longer than 20 ms', 'drain: queue'])
  })

  test('runs once, and returns the same promise to every caller', async () => {
    const { drain, closed, closes } = open()
    drain.add('queue', closes('queue'))
    const first = drain.run({ interrupted: true })
    expect(drain.run({ interrupted: false })).toBe(first)
    await first
    expect(drain.run({ interrupted: false })).toBe(first)
    expect(closed).toEqual(['queue'])
  })

  test('does not call a close that was taken back', async () => {
    const { drain, logged, closed, closes } = open()
    drain.add('start', closes('start'))()
    await drain.run({ interrupted: false })
    expect([closed, logged]).toEqual([[], []])
  })
})

describe('a drain that begins while the process starts', () => {
  test('aborts the start, waits for it, and closes what it opens until it gives up', async () => {
    const { drain, closed, closes } = open()
    drain.add('postgres', closes('postgres'))
    const starting = (async () => {
      await new Promise((resolve) => drain.signal.addEventListener('abort', resolve))
      await sleep(10)
      drain.add('connections', closes('connections'))
      drain.signal.throwIfAborted()
      drain.add('worker', closes('worker'))
    })()
    drain.add('start', () => starting.catch(() => {}))
    await drain.run({ interrupted: false })
    expect(closed).toEqual(['connections', 'postgres'])
    await expect(starting).rejects.toThrow('stopped while it started')
  })

  test('closes at once what a start that did not give up in time opens after its phase', async () => {
    const { drain, closed, closes } = open(20)
    drain.add('start', () => new Promise(() => {}))
    await drain.run({ interrupted: true })
    const reasons: unknown[] = []
    drain.add('worker', (reason) => reasons.push(reason))
    drain.add('queue', closes('queue'))
    expect(reasons).toEqual([{ interrupted: true }])
    expect(closed).toEqual(['queue'])
  })
})

test('no drain takes longer than the process gives it', () => {
  const total = (without: DrainPhase) =>
    phases.filter((phase) => phase !== without).reduce((sum, phase) => sum + drainPhases[phase], 0)
  expect(total('start')).toBeLessThanOrEqual(drainTimeoutMs)
  expect(total('worker')).toBeLessThanOrEqual(drainTimeoutMs)
})
