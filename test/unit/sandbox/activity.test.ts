import { expect, test } from 'vitest'
import { activityOf, switchesIn } from '#sandbox/activity.ts'
import { activityIn } from '#sandbox/container/activity.ts'
import { parseStat } from '#sandbox/process-stat.ts'
import { present } from '../../support/present.ts'

interface Described {
  name?: string
  state?: string
  ticks?: number
  startTime?: number
}

const stat = (
  pid: number,
  parent: number,
  { name = 'node', state = 'S', ticks = 0, startTime = pid }: Described = {},
) =>
  `${pid} (${name}) ${state} ${parent} ${pid} ${pid} 0 -1 4194560 1 2 3 4 ${ticks} 0 0 0 20 0 11 0 ${startTime} 1 1 1\n`
const parsed = (...lines: string[]) => lines.map((line) => present(parseStat(line)))
const [gateway, switches] = [10, 7]

test('a process is described by its stat, whatever it is called', () => {
  expect(parseStat(stat(10, 9, { name: 'a) S 1 (\nb', state: 'R', ticks: 42, startTime: 99 }))).toEqual({
    pid: 10,
    state: 'R',
    parent: 9,
    session: 10,
    terminal: '0',
    ticks: 42,
    threads: 11,
    startTime: '99',
  })
  for (const text of ['', 'x', '10', '10 (node) S 1', '10 (no']) expect(parseStat(text)).toBeNull()
})

test('only the switches that a thread made by itself count', () => {
  expect(switchesIn('Threads:\t11\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t9\n')).toBe(150)
  expect(switchesIn('nonvoluntary_ctxt_switches:\t9\n')).toBeNull()
})

test('the activity of a gateway has the work of its last child and of all below it, and of no other child', () => {
  const processes = parsed(
    stat(gateway, 1, { ticks: 100 }),
    stat(11, gateway, { ticks: 1000 }),
    stat(12, 11, { ticks: 1000 }),
    stat(13, gateway, { ticks: 20, startTime: 50 }),
    stat(14, 13, { ticks: 3 }),
    stat(15, 14, { ticks: 4 }),
    stat(16, 1, { ticks: 1000 }),
  )
  expect(activityOf(gateway, processes, switches)).toEqual({ switches, cpuSeconds: 1.27 })
  expect(activityOf(99, processes, switches)).toBeNull()
  expect(activityOf(gateway, processes, null)).toBeNull()
})

test('a gateway that is stopped waits for no child', () => {
  for (const state of ['T', 't']) {
    const processes = parsed(stat(gateway, 1, { state, ticks: 100 }), stat(11, gateway, { ticks: 1000 }))
    expect(activityOf(gateway, processes, switches)).toEqual({ switches, cpuSeconds: 1 })
  }
})

test('processes that claim to be each other’s parents are counted once', () => {
  const processes = parsed(stat(gateway, 12), stat(11, gateway, { ticks: 1 }), stat(12, 11, { ticks: 1 }))
  expect(activityOf(gateway, processes, switches)).toEqual({ switches, cpuSeconds: 0.02 })
})

const container = [
  stat(1, 0, { name: 'docker-init' }),
  stat(7, 1, { name: 'MainThread' }),
  stat(18, 7, { name: 'openclaw-gatewa', ticks: 100 }),
  stat(30, 18, { ticks: 50 }),
  stat(40, 1, { name: 'orphan', ticks: 1000 }),
  stat(50, 0, { name: 'sh', ticks: 1000 }),
].join('')
const counts = '/proc/7/status:voluntary_ctxt_switches:\t5\n/proc/18/status:voluntary_ctxt_switches:\t77\n'

test('the gateway of a container is the child of its supervisor', () => {
  expect(activityIn(container + counts)).toEqual({ switches: 77, cpuSeconds: 1.5 })
})

test('nothing is known of a container without a gateway, or that writes anything else', () => {
  for (const output of ['', counts, container, 'sh: 1: cat: not found\n', stat(1, 0), `${stat(1, 0)}${stat(7, 1)}`])
    expect(activityIn(output)).toBeNull()
})
