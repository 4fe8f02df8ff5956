import { execFileSync } from 'node:child_process'
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os'
import { parseArgs } from 'node:util'
import { StartupError } from '#errors/startup-error.ts'
import { measureAgentTurns } from './agent-turns.ts'
import { measureApi } from './api.ts'
import { type Fact, type Figure, isHeld, table } from './figures.ts'
import { measureFirstWord } from './first-word.ts'
import { measureStart } from './gateway-start.ts'
import { measureJail } from './jail.ts'
import { pageTable, writePage } from './page.ts'
import { measurePush } from './push.ts'
import { measureReplicas } from './replicas.ts'
import { measureRows } from './rows.ts'
import { measureWarmPool } from './warm-pool.ts'

/** Progress goes to stderr, so that it is not in the output of `--json`. */
const report = (text: string) => void process.stderr.write(`${text} …\n`)

const quickScale = { rounds: 3, roundMs: 1000, warmUpMs: 1500 }
const scale = { rounds: 5, roundMs: 1500, warmUpMs: 2500 }
/** All of them make the table of docs/performance.md. */
const parts = {
  api: () => measureApi(scale, report),
  start: () => measureStart(3, report),
  'first-word': () => measureFirstWord(report),
  pool: () => measureWarmPool(report),
  turns: () => measureAgentTurns(report),
  jail: () => measureJail(report),
  push: () => measurePush(report),
}
type Part = keyof typeof parts
const isPart = (name: string): name is Part => name in parts

const boolean = { type: 'boolean' } as const
const { values } = parseArgs({
  options: {
    part: { type: 'string', multiple: true },
    replicas: boolean,
    json: boolean,
    quick: boolean,
    write: boolean,
    rows: { type: 'string' },
  },
})
const { json, quick, replicas, write, part: chosen = Object.keys(parts) } = values

const maxRows = 10_000_000

async function measure(): Promise<(Fact | Figure)[]> {
  if (quick) return measureApi(quickScale, report)
  if (replicas) return measureReplicas(report)
  if (values.rows !== undefined) {
    const rows = Number(values.rows)
    if (!(Number.isInteger(rows) && rows > 0 && rows <= maxRows))
      throw new StartupError(`--rows is a whole number up to ${maxRows}`)
    return measureRows(rows, report)
  }
  if (!chosen.every(isPart)) throw new StartupError(`--part is one of ${Object.keys(parts).join(', ')}`)
  const figures: (Fact | Figure)[] = []
  for (const name of chosen) figures.push(...(await parts[name]()))
  return figures
}

const startedAt = performance.now()
const figures = await measure().catch((error: unknown) => {
  if (!(error instanceof StartupError)) throw error
  process.stderr.write(`${error.message}\n`)
  process.exit(1)
})
const seconds = Math.round((performance.now() - startedAt) / 1000)
const machine = {
  node: process.version,
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: availableParallelism(),
  load: loadavg()[0],
}
const shown = figures.map((one) => ({ ...one, held: isHeld(one) }))
const circumstances = {
  date: new Date().toISOString().slice(0, 10),
  commit: execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: import.meta.dirname, encoding: 'utf8' }).trim(),
  cores: machine.cores,
  cpu: machine.cpu,
  memoryGb: Math.round(totalmem() / 1024 ** 3),
  node: machine.node,
}
if (write) await writePage(figures, circumstances)
process.stdout.write(
  json
    ? `${JSON.stringify({ machine, seconds, figures: shown }, null, 2)}\n`
    : `\n${table(figures)}\n\n${pageTable(figures, circumstances)}\n\n  Measured in ${seconds} s.\n\n`,
)
if (shown.some(({ held }) => held === false)) process.exitCode = 1
