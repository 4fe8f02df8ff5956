import { availableParallelism, cpus, loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { StartupError } from '#errors/startup-error.ts'
import { measureAgentTurns } from './agent-turns.ts'
import { measureApi } from './api.ts'
import { type Fact, type Figure, isHeld, table } from './figures.ts'
import { measureStart } from './gateway-start.ts'
import { measureJail } from './jail.ts'
import { measureReplicas } from './replicas.ts'
import { measureRows } from './rows.ts'

const boolean = { type: 'boolean' } as const
const { values } = parseArgs({
  options: {
    jail: boolean,
    replicas: boolean,
    json: boolean,
    quick: boolean,
    rows: { type: 'string' },
  },
})
const { jail, json, quick, replicas } = values

const maxRows = 10_000_000

/** Progress goes to stderr, so that it is not in the output of `--json`. */
const report = (text: string) => void process.stderr.write(`${text} …\n`)

async function measure(): Promise<(Fact | Figure)[]> {
  if (jail) return measureJail(report)
  if (replicas) return measureReplicas(report)
  if (values.rows !== undefined) {
    const rows = Number(values.rows)
    if (!(Number.isInteger(rows) && rows > 0 && rows <= maxRows))
      throw new StartupError(`--rows is a whole number up to ${maxRows}`)
    return measureRows(rows, report)
  }
  const figures = await measureApi(
    quick ? { rounds: 3, roundMs: 1000, warmUpMs: 1500 } : { rounds: 5, roundMs: 1500, warmUpMs: 2500 },
    report,
  )
  return quick
    ? figures
    : [
        ...figures,
        ...(await measureStart(3, report)),
        ...(await measureAgentTurns(report)),
        ...(await measureJail(report)),
      ]
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
process.stdout.write(
  json
    ? `${JSON.stringify({ machine, seconds, figures: shown }, null, 2)}\n`
    : `\n${table(figures)}\n\n  Measured in ${seconds} s on ${machine.cores} cores, ${machine.cpu}, Node ${machine.node}.\n\n`,
)
if (shown.some(({ held }) => held === false)) process.exitCode = 1
