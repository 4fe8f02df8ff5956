import { availableParallelism, cpus, loadavg } from 'node:os'
import { parseArgs } from 'node:util'
import { measureApi } from './api.ts'
import { type Figure, isHeld, table } from './figures.ts'
import { measureStart } from './gateway-start.ts'

const { values } = parseArgs({ options: { json: { type: 'boolean' }, quick: { type: 'boolean' } } })
const { json = false, quick = false } = values

/** For whoever waits; not part of what `--json` prints. */
const say = (text: string) => void process.stderr.write(`${text} …\n`)

const startedAt = performance.now()
const figures: Figure[] = await measureApi(
  quick ? { rounds: 3, roundMs: 1000, warmUpMs: 1500 } : { rounds: 5, roundMs: 1500, warmUpMs: 2500 },
  say,
)
if (!quick) figures.push(await measureStart(3, say))

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
if (!figures.every(isHeld)) process.exitCode = 1
