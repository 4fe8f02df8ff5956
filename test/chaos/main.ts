// npm run test:chaos [-- --short] [--minutes N] [--seed S] [--queue postgres|redis]
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { type Report, tableOf } from './table.ts'

const usage = 'usage: npm run test:chaos -- [--short] [--minutes N] [--seed S] [--queue postgres|redis]'
const waiting = 'gateway-faults'
const vitest = join(import.meta.dirname, '../../node_modules/vitest/vitest.mjs')

/** Parses the command line. Throws an Error with the usage for invalid options. */
function readArguments() {
  const { values } = parseArgs({
    options: {
      short: { type: 'boolean', default: false },
      minutes: { type: 'string' },
      seed: { type: 'string' },
      queue: { type: 'string' },
    },
  })
  const minutes = values.minutes === undefined ? null : Number(values.minutes)
  const isSound =
    (minutes === null || minutes > 0) &&
    /^\d{1,9}$/.test(values.seed ?? '0') &&
    ['postgres', 'redis'].includes(values.queue ?? 'redis')
  if (!isSound) throw new Error(usage)
  return { ...values, minutes }
}

/** Runs tests of the crash suite. Returns their output, unless it is printed immediately. */
async function runVitest(args: string[], env: NodeJS.ProcessEnv, stdio: 'inherit' | 'pipe') {
  const child = spawn(process.execPath, [vitest, 'run', '--project', 'chaos', ...args], {
    stdio: ['ignore', stdio, stdio],
    env,
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, output }
}

/**
 * Runs the crash suite, with `short` without what only repeats at length and with the nemesis on the queue in
 * PostgreSQL, or with `minutes` the nemesis alone for so long (on both queues at once unless one is named), and ends with the table of what the nemesis did and found.
 * Everything it needs it starts itself.
 */
async function main(): Promise<void> {
  const { short, minutes, seed, queue = short ? 'postgres' : undefined } = readArguments()
  const chosen = short ? ['--tags-filter=!long'] : []
  const folder = await mkdtemp(join(tmpdir(), 'chowder-chaos-'))
  const reports = join(folder, 'reports')
  const seconds = minutes === null ? null : minutes * 60
  const env = {
    ...process.env,
    CHAOS_REPORT: reports,
    ...(seconds !== null && { CHAOS_SECONDS: String(seconds) }),
    ...(queue !== undefined && { CHAOS_QUEUE: queue }),
    ...(seed !== undefined && { SEED: seed }),
  }
  // Minutes of waiting for stubs, which the others do not notice.
  const aside = seconds === null ? runVitest([waiting, ...chosen], env, 'pipe') : null
  const { code } = await runVitest(
    seconds === null ? ['--exclude', `**/${waiting}.test.ts`, ...chosen] : ['nemesis'],
    env,
    'inherit',
  )
  const { code: codeAside = 0, output = '' } = (await aside) ?? {}
  process.stdout.write(output)
  const lines = (await readFile(reports, 'utf8').catch(() => '')).split('\n').filter((line) => line !== '')
  await rm(folder, { recursive: true, force: true })
  const found: Report[] = lines.map((line) => JSON.parse(line))
  process.stdout.write(`\n${tableOf(found)}\n`)
  process.exitCode =
    code === 0 && codeAside === 0 && found.length > 0 && found.every(({ violations }) => violations.length === 0)
      ? 0
      : 1
}

main().catch((error: unknown) => {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`)
  process.exitCode = 1
})
