import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import pMap from 'p-map'
import { startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { processesIn } from '../test/support/run-folder.ts'
import { withChowder } from './agents.ts'
import { median } from './figures.ts'
import { createAndWait, firstWordOf, untilStatus } from './first-word.ts'
import { plotLine } from './plot.ts'
import type { Tenant } from './tenant.ts'

const { values } = parseArgs({
  options: {
    agents: { type: 'string', default: '150' },
    awake: { type: 'string', default: '12' },
    minutes: { type: 'string', default: '60' },
    out: { type: 'string', default: 'density.svg' },
  },
})

/** The shortest that the API takes. */
const idleSeconds = 60
/** An agent that has work left does not sleep. */
const asleepTimeoutMs = 15 * 60_000
const removeTimeoutMs = 5 * 60_000
const sampleMs = 5000

function wholeNumber(name: 'agents' | 'awake' | 'minutes', most: number): number {
  const number = Number(values[name])
  if (Number.isInteger(number) && number > 0 && number <= most) return number
  process.stderr.write(`--${name} is a whole number from 1 to ${most}\n`)
  process.exit(1)
}

const agents = wholeNumber('agents', 10_000)
const awake = Math.min(wholeNumber('awake', 1000), agents)
const minutes = wholeNumber('minutes', 24 * 60)

const startedAt = performance.now()
const minutesPassed = () => (performance.now() - startedAt) / 60_000
const report = (text: string) => void process.stderr.write(`${minutesPassed().toFixed(1)} min: ${text}\n`)

/** The memory of this machine that is in use, in GB. */
async function usedGb(): Promise<number> {
  const text = await readFile('/proc/meminfo', 'utf8')
  const kB = (name: string) => Number(new RegExp(`^${name}: +(\\d+) kB$`, 'm').exec(text)?.[1])
  return (kB('MemTotal') - kB('MemAvailable')) / 1024 ** 2
}

const wait = (tenant: Tenant, id: string) => untilStatus(tenant, id, 'stopped', asleepTimeoutMs)

/**
 * Agents of which only so many are awake at a time: each is created, answers, and sleeps before the next one is; then all
 * answer in turn, woken by their turn, for the time. Agents that did not sleep again are counted.
 */
async function useAgents(tenant: Tenant) {
  const failures: string[] = []
  const seconds: number[] = []
  let turns = 0
  const take = async (id: string, act: () => Promise<unknown>) => {
    await act().catch((error: unknown) => failures.push(`${id}: ${error instanceof Error ? error.message : error}`))
  }
  report(`creating ${agents} agents, ${awake} awake at most`)
  let made = 0
  const ids = await pMap(
    Array.from({ length: agents }),
    async () => {
      const id = await createAndWait(tenant, { idle_timeout_seconds: idleSeconds })
      await take(id, () => firstWordOf(tenant, id))
      await take(id, () => wait(tenant, id))
      made += 1
      if (made % awake === 0) report(`${made} agents`)
      return id
    },
    { concurrency: awake },
  )
  const allAsleepAt = minutesPassed()
  report(`turns for ${minutes} min`)
  const waiting = [...ids]
  const next = async () => {
    for (let id = waiting.shift(); id && minutesPassed() < allAsleepAt + minutes; id = waiting.shift()) {
      const one = id
      turns += 1
      await take(one, async () => seconds.push((await firstWordOf(tenant, one)).firstWord))
      await take(one, () => wait(tenant, one))
      waiting.push(one)
      if (turns % awake === 0) report(`${turns} turns, ${failures.length} failures`)
    }
  }
  await Promise.all(Array.from({ length: awake }, next))
  return { ids, turns, seconds, failures }
}

/** Deletes them; returns how many sandboxes and processes are left after a time. */
async function removeAgents(tenant: Tenant, dataDir: string, ids: string[]) {
  report('deleting all agents')
  await pMap(ids, (id) => tenant.call('DELETE', `/v1/instances/${id}`), { concurrency: 8 })
  const sandboxes = join(dataDir, 'sandboxes')
  const count = async () => ({
    sandboxes: (await readdir(sandboxes)).length,
    processes: (await processesIn(sandboxes)).length,
  })
  const deadline = performance.now() + removeTimeoutMs
  let left = await count()
  while (left.sandboxes + left.processes > 0 && performance.now() < deadline) {
    await new Promise((resolve) => setTimeout(resolve, 1000))
    left = await count()
  }
  return left
}

const memory: [number, number][] = []
const sample = async () => void memory.push([minutesPassed(), await usedGb()])
await sample()
const sampling = setInterval(sample, sampleMs)
const provider = await startFakeModelProvider()
try {
  await withChowder({ ANTHROPIC_BASE_URL: provider.url }, report, async ({ tenant, dataDir }) => {
    const { ids, turns, seconds, failures } = await useAgents(tenant)
    const left = await removeAgents(tenant, dataDir, ids)
    await sample()
    const most = Math.max(...memory.map(([, gb]) => gb))
    const title = `Memory in use, ${agents} agents of which ${awake} are awake at most`
    await writeFile(values.out, plotLine(title, { x: 'min', y: 'GB' }, memory))
    process.stdout.write(
      `${[
        `${agents} agents, at most ${awake} awake, ${minutes} min of turns`,
        `turns: ${turns}, to the first word: ${seconds.length > 0 ? median(seconds).toFixed(2) : '-'} s (median)`,
        `failures: ${failures.length}`,
        ...failures.slice(0, 20).map((failure) => `  ${failure}`),
        `left after all were deleted: ${left.sandboxes} sandboxes, ${left.processes} processes`,
        `memory in use: ${memory[0]?.[1].toFixed(1)} GB before, ${most.toFixed(1)} GB at most (${values.out})`,
      ].join('\n')}\n`,
    )
    if (failures.length + left.sandboxes + left.processes > 0) process.exitCode = 1
  })
} finally {
  clearInterval(sampling)
  await provider.close()
}
