import './platform/node-version.ts'
import './platform/package-lookups.ts'

import closeWithGrace from 'close-with-grace'
import type { CreateDriver } from './composition/sandboxes.ts'
import type { Role } from './composition/startup.ts'
import { BadEnvironment, type Config, loadConfig } from './platform/config.ts'
import { dataFolder } from './platform/data-folder.ts'
import { createLog } from './platform/log.ts'
import { StartupError } from './platform/startup-error.ts'

// Imported once the imports above have had their effect.
const { createDrain, drainTimeoutMs } = await import('./composition/drain.ts')
const { start } = await import('./composition/start.ts')
const { roles } = await import('./composition/startup.ts')

/** A person who presses Ctrl-C again, to end the process at once, takes longer than this. */
const duplicateWithinMs = 1000

function roleOf(argument: string | undefined, config: Config): Role {
  const role = roles.find((known) => known === (argument ?? config.CHOWDER_ROLE))
  if (role) return role
  throw new StartupError(`There is no command ${JSON.stringify(argument)}. Use one of: ${roles.join(', ')}.`)
}

/**
 * Under npm one Ctrl-C arrives twice within a millisecond: from the terminal and from npm. The duplicate would end the
 * process at once and leave agents and database running. Returns a function to call for the first signal, which has
 * duplicates of it ignored; a later signal still ends the process at once.
 */
function ignoreDuplicates(): (signal: NodeJS.Signals) => void {
  let firstSignalAt = Number.POSITIVE_INFINITY
  // Added now: in a moment without any listener the duplicate would kill the process.
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
  const config = loadConfig()
  const role = roleOf(process.argv[2], config)
  const log = createLog(config.LOG_LEVEL, role, process.stdout.isTTY)
  const drain = createDrain(log)
  const ignoreDuplicatesOf = ignoreDuplicates()
  const grace = closeWithGrace({ delay: drainTimeoutMs, logger: log }, async ({ err, signal }) => {
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
    if (drain.signal.aborted) return // the process already ends
    await drain.run({ interrupted: false })
    throw error
  }
}

/** Runs Chowder as a process until a signal ends it. The role is the argument of the command line, or CHOWDER_ROLE. */
export async function main(createDriver?: CreateDriver): Promise<void> {
  await run(createDriver).catch((error: unknown) => {
    const isExpected = error instanceof StartupError || error instanceof BadEnvironment
    process.stderr.write(
      isExpected ? `chowder: ${error.message}\n` : `chowder: ${error instanceof Error ? error.stack : error}\n`,
    )
    process.exit(1)
  })
}

if (import.meta.main) await main()
