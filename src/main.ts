import './platform/node-version.ts'
import './platform/package-lookups.ts'

import closeWithGrace from 'close-with-grace'
import type { Closers, Role } from './composition/start.ts'
import { BadEnvironment, type Config, loadConfig } from './platform/config.ts'
import { atMost } from './platform/deadline.ts'
import { createLog, type Logger } from './platform/log.ts'
import { StartupError } from './platform/startup-error.ts'

// Once all of the above has had its effect.
const { roles, start } = await import('./composition/start.ts')

/** Draining: reconciles 30 s, agents 20 s, PostgreSQL 40 s, the rest seconds. After this the process ends as it is. */
const shutdownTimeoutMs = 120_000
const startEndsMs = 30_000

function roleOf(argument: string | undefined, config: Config): Role {
  const role = roles.find((known) => known === (argument ?? config.CHOWDER_ROLE))
  if (role) return role
  throw new StartupError(`There is no command ${JSON.stringify(argument)}. Use one of: ${roles.join(', ')}.`)
}

/** A person who presses Ctrl-C again wants out; nobody does that within this time. */
const twinWithinMs = 1000

/**
 * Under npm one Ctrl-C comes twice within a millisecond, from the terminal and from npm; the second signal would end
 * the process as it is, with agents and database left running. Returns what makes the twin of a first signal harmless;
 * a later second signal still ends the process at once.
 */
function ignoreTwins(): (signal: NodeJS.Signals) => void {
  let firstAt = Number.POSITIVE_INFINITY
  // There from the start: a moment without any listener, and the twin would kill the process.
  const onSignal = () => {
    if (performance.now() - firstAt > twinWithinMs) process.exit(1)
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, onSignal)
  return (signal) => {
    firstAt = performance.now()
    for (const listener of process.listeners(signal)) {
      if (listener !== onSignal) process.removeListener(signal, listener)
    }
  }
}

async function main(): Promise<void> {
  const config = loadConfig()
  const role = roleOf(process.argv[2], config)
  const log = createLog(config.LOG_LEVEL, role, process.stdout.isTTY)
  const closers: Closers = []
  const ending = new AbortController()
  let closing: Promise<void> | undefined
  const shutDown = (interrupted: boolean): Promise<void> => {
    closing ??= closeAll(closers, interrupted, log)
    return closing
  }
  const starting = Promise.withResolvers<void>()
  const ignoreTwinOf = ignoreTwins()
  const shutdown = closeWithGrace({ delay: shutdownTimeoutMs, logger: log }, async ({ err, signal }) => {
    if (signal) ignoreTwinOf(signal)
    if (err) log.fatal({ err }, 'crashed')
    else log.info({ signal }, 'shutting down')
    ending.abort(new StartupError('It was told to end while it started.'))
    await atMost(startEndsMs, starting.promise) // what it is just opening must be there to be closed
    await shutDown(signal === 'SIGINT')
  })
  try {
    await start(config, role, log, closers, ending.signal).finally(starting.resolve)
    if (role !== 'migrate') return
    await shutDown(false)
    shutdown.uninstall()
  } catch (error) {
    if (ending.signal.aborted) return // the shutdown has the word
    await shutDown(false)
    throw error
  }
}

async function closeAll(closers: Closers, interrupted: boolean, log: Logger): Promise<void> {
  for (let closer = closers.pop(); closer; closer = closers.pop()) {
    await closer.close({ interrupted }).catch((error: unknown) => log.warn({ err: error }, 'closing failed'))
  }
}

main().catch((error: unknown) => {
  const isExpected = error instanceof StartupError || error instanceof BadEnvironment
  process.stderr.write(
    isExpected ? `chowder: ${error.message}\n` : `chowder: ${error instanceof Error ? error.stack : error}\n`,
  )
  process.exit(1)
})
