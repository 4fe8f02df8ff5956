import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type pg from 'pg'
import { pino } from 'pino'
import { createDrain, type Drain } from '#composition/drain.ts'
import { start } from '#composition/start.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import { loadConfig } from '#settings/config.ts'
import { databaseUrl } from '../chaos/api-replicas.ts'

export interface StartedChowder {
  url: string
  drain: Drain
  /** The phases of the drain that have begun. */
  phases(): string[]
  /** Ends it at once. May be called again. */
  close(): Promise<void>
}

/** The methods of a class are not copied with an object: the measuring of a driver needs them as its own. */
function withOwnMethods<Driver extends object>(driver: Driver): Driver {
  const names = Object.getOwnPropertyNames(Object.getPrototypeOf(driver)) as (keyof Driver)[]
  const methods = names
    .filter((name) => name !== 'constructor')
    .map((name) => [name, (driver[name] as () => unknown).bind(driver)])
  return { ...driver, ...Object.fromEntries(methods) }
}

/** Starts all roles in this process, as `npm start` does, on a database and with the sandboxes of the test. */
export async function startHere(
  connection: pg.PoolConfig,
  sandboxes: SandboxDriver,
  env: NodeJS.ProcessEnv = {},
): Promise<StartedChowder> {
  const dataDir = await mkdtemp(join(tmpdir(), 'chowder-started-'))
  await chmod(dataDir, 0o711)
  const lines: Record<string, string>[] = []
  const log = pino({ level: 'info' }, { write: (line: string) => void lines.push(JSON.parse(line)) })
  const drain = createDrain(log)
  const close = async () => {
    await drain.run({ interrupted: true })
    await rm(dataDir, { recursive: true, force: true })
  }
  const config = loadConfig({
    DATABASE_URL: databaseUrl(connection),
    CHOWDER_SECRET_KEY: Buffer.alloc(32, 7).toString('base64'),
    PORT: '0',
    RELAY_PORT: '0',
    ...env,
  })
  try {
    await start({ role: 'all', config, dataDir, log: log as never, drain }, async () => withOwnMethods(sandboxes))
  } catch (error) {
    await close()
    throw error
  }
  return {
    url: lines.find(({ msg }) => msg === 'Chowder is running as all')?.url ?? '',
    drain,
    phases: () => lines.flatMap(({ msg, phase }) => (phase && msg === `drain: ${phase}` ? [phase] : [])),
    close,
  }
}
