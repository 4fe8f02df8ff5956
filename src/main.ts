import './platform/node-version.mjs'
import './platform/package-lookups.ts'

import closeWithGrace from 'close-with-grace'
import type { CreateDriver } from './composition/sandboxes.ts'
import { type Role, roles } from './composition/startup.ts'
import { StartupError } from './errors/startup-error.ts'
import { didYouMean, parseCommandLine } from './platform/command-line.ts'
import { dataFolder, isCode } from './platform/data-folder.ts'
import { createLog } from './platform/log.ts'
import { commit, version } from './platform/version.ts'
import { BadEnvironment, loadConfig, unknownSettings } from './settings/config.ts'

/** Longer than npm's duplicate of a signal takes, shorter than a person takes to press Ctrl-C again. */
const duplicateWithinMs = 1000

const usage = `usage: npm start [-- <role>]
  all       the API, a worker and, without DATABASE_URL, the database in one process: the default
  api       the API alone
  worker    a worker alone; any number of them may run
  relay     the relay alone, with RELAY_ROLE=relay; any number of them may run
  migrate   brings the schema of the database up to date and ends: npm run migrate
  Settings are environment variables, also in the file .env: docs/settings.md has them all.`

/** The role on the command line; undefined without one. */
function readRole(): Role | undefined {
  const [word, ...others] = parseCommandLine(usage, {}).positionals
  if (others.length > 0) throw new StartupError(`There is no use for ${others.join(' ')}: name one role, or none.`)
  if (word === undefined) return undefined
  const role = roles.find((known) => known === word)
  if (role) return role
  throw new StartupError(`There is no role ${word}.${didYouMean(word, roles)}`)
}

/**
 * Under npm one Ctrl-C arrives twice within a millisecond: from the terminal and from npm. The duplicate would end the
 * process at once and leave agents and database running. Returns a function to call for the first signal, which makes
 * the process ignore its duplicates; a later signal still ends the process at once.
 */
function ignoreDuplicates(): (signal: NodeJS.Signals) => void {
  let firstSignalAt = Number.POSITIVE_INFINITY
  // Added now: without any listener the duplicate would kill the process.
  const onSignal = () => {
    if (performance.now() - firstSignalAt > duplicateWithinMs) process.exit(1)
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, onSignal)
  return (signal) => {
    firstSignalAt = performance.now()
    for (const listener of process.listeners(signal)) {
      if (listener !== onSignal) process.removeListener(signal, listener)
    }
  }
}

async function run(createDriver?: CreateDriver): Promise<void> {
  const named = readRole()
  const settings = loadConfig()
  const role = named ?? 'all'
  const config = role === 'migrate' ? settings : Object.freeze({ ...settings, CHOWDER_ROLE: role })
  // Loaded after the settings are checked, so that a refused setting is reported at once.
  const { createDrain, drainPhases, drainTimeoutMs } = await import('./composition/drain.ts')
  const { start } = await import('./composition/start.ts')
  const { turnDrainMs } = await import('./composition/settings.ts')
  const log = createLog(config, role)
  log.info({ version, commit, node: process.version }, `Chowder ${version} (${commit}) starts as ${role}`)
  for (const sentence of unknownSettings()) log.warn(sentence)
  const turnsMs = turnDrainMs(config)
  const drain = createDrain(log, {
    ...drainPhases,
    api: drainPhases.api + turnsMs,
    relay: drainPhases.relay + turnsMs,
  })
  const ignoreDuplicatesOf = ignoreDuplicates()
  const grace = closeWithGrace({ delay: drainTimeoutMs + turnsMs, logger: log }, async ({ err, signal }) => {
    if (signal) ignoreDuplicatesOf(signal)
    if (err) log.fatal({ err }, 'crashed')
    else log.info({ signal }, 'shutting down')
    await drain.run({ interrupted: signal === 'SIGINT' })
  })
  const starting = start({ role, config, dataDir: dataFolder(config.CHOWDER_DATA_DIR), log, drain }, createDriver)
  const startHasEnded = drain.add('start', () => starting.catch(() => {})) // what just opens is closed as well
  try {
    await starting.finally(startHasEnded)
    if (role !== 'migrate') return
    await drain.run({ interrupted: false })
    grace.uninstall()
  } catch (error) {
    if (drain.signal.aborted) return // the process is already ending
    await drain.run({ interrupted: false })
    throw error
  }
}

/** Runs Chowder as a process until a signal ends it. The role is the argument of the command line, or `all`. */
export async function main(createDriver?: CreateDriver): Promise<void> {
  await run(createDriver).catch((error: unknown) => {
    const isDiskFull = isCode(error, 'ENOSPC', 'EDQUOT')
    const isExpected = isDiskFull || error instanceof StartupError || error instanceof BadEnvironment
    const failure = isExpected ? (error as Error).message : error instanceof Error ? error.stack : error
    const wayOut = isDiskFull ? '. Free some of that disk, or set CHOWDER_DATA_DIR to a folder of another one' : ''
    process.stderr.write(`chowder: ${failure}${wayOut}\n`)
    process.exit(1)
  })
}

if (import.meta.main) await main()
