import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, open, readFile, realpath, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { dataFolder, prepareDataFolder } from '#platform/data-folder.ts'
import { poll } from '#platform/poll.ts'
import { Env } from '#settings/env.ts'

const root = join(import.meta.dirname, '..')
const startTimeoutMs = 120_000
/** Longer than Chowder usually takes to drain and to stop its agents. */
const stopTimeoutMs = 75_000
const isRoot = process.getuid?.() === 0

export interface ChowderOptions {
  role: 'all' | 'api' | 'worker' | 'relay' | 'migrate'
  dataDir: string
  /** The file to which its log is appended. */
  logFile: string
  /** The program that is Chowder; `src/main.ts` by default. */
  entry?: string
  /** Its settings. The settings in the environment of the caller are not passed on. */
  env?: Record<string, string>
  /** Gives up the start, and stops the process. */
  signal?: AbortSignal
}

export interface ChowderProcess {
  /** The URL of its API; empty for a worker. */
  url: string
  pid: number
  /** SIGINT stops the agents too. Resolves when the process has ended; kills it if it does not, after 75 s. */
  stop(signal: 'SIGINT' | 'SIGTERM'): Promise<void>
}

/** The environment of this process without the settings of Chowder. */
const withoutSettings = () =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !(name in Env.properties)))

function spawnChowder({ role, dataDir, entry = join(root, 'src/main.ts'), env = {} }: ChowderOptions, log: number) {
  const child = spawn(process.execPath, [entry, role], {
    cwd: root,
    detached: true, // the caller passes a Ctrl-C on this terminal on
    stdio: ['ignore', log, log],
    env: { ...withoutSettings(), PORT: '0', RELAY_PORT: '0', ...env, CHOWDER_DATA_DIR: dataDir },
  })
  return { child, ended: once(child, 'exit') }
}

/** The messages of its log for people to read, oldest first, without those about single requests. */
export async function messagesIn(logFile: string): Promise<string[]> {
  const lines = (await readFile(logFile, 'utf8')).split('\n')
  return lines
    .filter((line) => line && !line.includes('"msg":"request"'))
    .map((line) => {
      if (!line.startsWith('{')) return line
      const { msg, step, err } = JSON.parse(line) as { msg?: string; step?: string; err?: { message?: string } }
      const text = [msg, step].filter(Boolean).join(': ')
      return err?.message ? `${text}: ${err.message.split('\n')[0]}` : text
    })
}

/** Runs the migrations of Chowder. Throws an Error with its last messages when they fail. */
export async function migrateWithChowder(options: Omit<ChowderOptions, 'role'>): Promise<void> {
  const log = await open(options.logFile, 'a')
  const { ended } = spawnChowder({ ...options, role: 'migrate' }, log.fd)
  await log.close()
  const [code] = await ended
  if (code !== 0) throw new Error(`migrating failed:\n${(await messagesIn(options.logFile)).slice(-10).join('\n')}`)
}

/**
 * Starts Chowder as a process of its own, on a port that the system chooses, and resolves once it runs. Throws an Error
 * with its last messages when it ends or takes longer than 2 minutes. It goes on running when the caller is killed.
 */
export async function startChowder(options: ChowderOptions): Promise<ChowderProcess> {
  const log = await open(options.logFile, 'a')
  const { size } = await log.stat()
  const { child, ended } = spawnChowder(options, log.fd)
  await log.close()

  async function stop(signal: 'SIGINT' | 'SIGTERM'): Promise<void> {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill(signal)
    const deadline = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs)
    await ended
    clearTimeout(deadline)
  }

  const hasEnded = () => child.exitCode !== null || child.signalCode !== null || options.signal?.aborted === true
  const findUrl = async () => {
    const written = (await readFile(options.logFile)).subarray(size).toString()
    const [running, url = ''] = /(?:"url":"([^"]+)",)?"msg":"Chowder is running/.exec(written) ?? []
    return running ? { url } : hasEnded() && { url: null }
  }
  const { url } = (await poll(findUrl, { pauseMs: 50, timeoutMs: startTimeoutMs })) ?? { url: null }
  if (url !== null) return { url, pid: child.pid ?? 0, stop }
  await stop('SIGINT')
  options.signal?.throwIfAborted()
  throw new Error(`Chowder did not start:\n${(await messagesIn(options.logFile)).slice(-10).join('\n')}`)
}

/** The default data folder, made if it is missing. */
async function defaultDataDir(): Promise<string> {
  const path = dataFolder(undefined)
  await prepareDataFolder(path)
  return realpath(path)
}

/** Makes a data folder for one run, which has its releases of OpenClaw in the default data folder. */
export async function makeTemporaryDataDir(prefix: string): Promise<{ path: string; remove(): Promise<void> }> {
  const releases = join(await defaultDataDir(), 'releases')
  await mkdir(releases, { recursive: true })
  const path = await mkdtemp(join(tmpdir(), prefix))
  if (isRoot) await chmod(path, 0o711) // agents and database run as other users
  await symlink(releases, join(path, 'releases'))
  return { path, remove: () => rm(path, { recursive: true, force: true, maxRetries: 5 }) }
}
