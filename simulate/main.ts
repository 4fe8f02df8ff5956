// npm run simulate -- [--instances N] [--workers N] [--hours N] [--out FILE]
import { writeFile } from 'node:fs/promises'
import { availableParallelism, cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { partOfDay } from './day.ts'
import { startFleet } from './fleet.ts'
import { liveThroughDay } from './people.ts'
import { eventsOf, failuresOf, tableOf } from './report.ts'
import { takeSamples } from './samples.ts'

const usage = `usage: npm run simulate -- [--instances N] [--workers N] [--hours N] [--out FILE]
  A day of a fleet on a platform that is simulated, with the control plane as it is, in fewer hours.
  --instances   how many run from the beginning; 1000 by default, at most 1000000
  --workers     worker processes; 2 by default, at most 64
  --hours       how long the day takes; 0.1 by default, at most 48
  --out         also writes the table to this file`

const reportEveryMs = 30_000

/** Parses the command line. Throws an Error with the usage for invalid options. */
function readArguments() {
  const string = { type: 'string' } as const
  const { values } = parseArgs({ options: { instances: string, workers: string, hours: string, out: string } })
  const number = (text: string | undefined, otherwise: number, most: number, isWhole: boolean) => {
    const value = text === undefined ? otherwise : Number(text)
    if (!(value > 0 && value <= most) || (isWhole && !Number.isInteger(value))) throw new Error(usage)
    return value
  }
  return {
    instances: number(values.instances, 1000, 1_000_000, true),
    workers: number(values.workers, 2, 64, true),
    hours: number(values.hours, 0.1, 48, false),
    out: values.out ?? null,
  }
}

const report = (text: string) => void process.stderr.write(`${text} …\n`)

async function simulate(): Promise<void> {
  const { instances, workers, hours, out } = readArguments()
  const interrupted = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => interrupted.abort())
  const fleet = await startFleet({ instances, workers, report })
  try {
    const daySeconds = hours * 3600
    const startedAt = performance.now()
    const timeNow = () => (performance.now() - startedAt) / 1000 / daySeconds
    const isOver = new AbortController()
    const sampling = takeSamples(fleet, timeNow, isOver.signal)
    const progress = setInterval(() => {
      const time = timeNow()
      report(`${(time * 24).toFixed(1)} h of the day, ${partOfDay(Math.min(time, 1))}`)
    }, reportEveryMs)
    const asked = await liveThroughDay(fleet, { timeNow, daySeconds, signal: interrupted.signal })
    clearInterval(progress)
    isOver.abort()
    const samples = await sampling
    const table = tableOf(samples, asked)
    const cpu = cpus()[0]?.model ?? 'unknown'
    const machine = `${instances} instances, ${workers} workers, a day in ${hours} h, ${availableParallelism()} cores of ${cpu}`
    const told = ['', 'events', ...(await eventsOf(fleet)), '', 'failures', ...failuresOf(asked).slice(0, 10)]
    process.stdout.write(`\n${table}\n\n${machine}\n${told.join('\n')}\n`)
    if (out !== null) await writeFile(out, `${table}\n\n${machine}\n`)
  } finally {
    report('closing')
    await fleet.close()
  }
}

simulate().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`)
  process.exitCode = 1
})
