import { spawn } from 'node:child_process'
import { chmod, copyFile, mkdir, readdir, realpath, rename, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Progress } from '#sandbox/driver.ts'

const deadlineMs = 15 * 60_000
const progressMs = 2000
const lockPollMs = 500
const keptErrorBytes = 4096
const sqliteBusy = 5

/** How npm reports a file that it could not write, on a full disk for one. It goes on to the end, and exits with 0. */
const unwritten = /TAR_ENTRY_ERROR.*/

/** `npm ci` leaves nothing to chance: exactly the locked packages, checked against their hashes, and no script is run. */
const npmArgs = ['ci', '--ignore-scripts', '--omit=dev', '--no-audit', '--no-fund', '--no-progress', '--loglevel=warn']

export interface LockedInstall {
  /** Where `package.json` and `package-lock.json` are. */
  source: string
  /** Where the packages will be: a name that changes with the lock. */
  folder: string
  /** What people call it. */
  title: string
  /** How many packages it has at least. */
  packages: number
  /** For npm, besides those that are always given. */
  npmArgs?: readonly string[]
  /** Checks and finishes what npm installed, while it can still be written. */
  complete(folder: string, signal: AbortSignal): Promise<void>
  progress: Progress
  signal: AbortSignal
}

/** Whether there is anything at the path. */
export const exists = (path: string) =>
  stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false
      throw error
    },
  )

/**
 * Runs a program to its end. Throws with the last of its error output, or the signal's reason once all of it is killed.
 * Output that matches `fatal` ends it and is the error.
 */
export async function run(
  command: string,
  args: readonly string[],
  signal: AbortSignal,
  { fatal, env }: { fatal?: RegExp; env?: Record<string, string> } = {},
): Promise<void> {
  signal.throwIfAborted()
  const { promise: ended, resolve, reject } = Promise.withResolvers<number | null>()
  const child = spawn(command, args, { stdio: ['ignore', 'ignore', 'pipe'], detached: true, ...(env && { env }) })
  const killAll = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    } catch {} // all of it has ended
  }
  let errors = ''
  let failure: string | undefined
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-keptErrorBytes)
    failure ??= fatal?.exec(errors)?.[0]
    if (failure !== undefined) killAll()
  })
  child.once('error', reject).once('close', resolve)
  signal.addEventListener('abort', killAll, { once: true })
  try {
    const code = await ended
    signal.throwIfAborted()
    if (failure !== undefined) throw new Error(failure)
    if (code !== 0) throw new Error(errors.trim() || `${command} ended with code ${code}`)
  } finally {
    signal.removeEventListener('abort', killAll)
  }
}

/**
 * Holds the one right to install, across processes, until disposed of. The operating system frees SQLite's lock when
 * its holder dies, however it dies, so nobody has to judge whether a holder is alive.
 */
async function lock(path: string, onWait: () => void, signal: AbortSignal): Promise<Disposable> {
  for (let waited = false; ; waited = true) {
    signal.throwIfAborted()
    const database = new DatabaseSync(path, { timeout: 0 })
    try {
      database.exec('BEGIN EXCLUSIVE')
      return { [Symbol.dispose]: () => database.close() }
    } catch (error) {
      database.close()
      if ((error as { errcode?: number }).errcode !== sqliteBusy) throw error
    }
    if (!waited) onWait()
    await sleep(lockPollMs, undefined, { signal })
  }
}

/** Removes a folder that may have been made read-only already. */
async function discard(folder: string): Promise<void> {
  await run('chmod', ['-R', 'u+w', folder], AbortSignal.timeout(60_000)).catch(() => {}) // rm says what is wrong
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

/** npm makes all folders at once and fills them one by one: those that are filled count. */
async function countPackages(nodeModules: string): Promise<number> {
  const list = (folder: string) => readdir(folder).catch(() => [])
  const names = await list(nodeModules)
  const scoped = await Promise.all(
    names
      .filter((name) => name.startsWith('@'))
      .map(async (scope) => (await list(join(nodeModules, scope))).map((name) => `${scope}/${name}`)),
  )
  const folders = [...names.filter((name) => !/^[@.]/.test(name)), ...scoped.flat()]
  const filled = await Promise.all(
    folders.map((name) => exists(join(nodeModules, name, 'package.json')).catch(() => false)),
  )
  return filled.filter(Boolean).length
}

async function fill(folder: string, install: LockedInstall, signal: AbortSignal): Promise<void> {
  const { source, title, packages, progress } = install
  const report = async () => {
    const count = Math.min(await countPackages(join(folder, 'node_modules')), packages)
    progress(`installing ${title}: ${count} of ${packages} packages`)
  }
  await mkdir(folder)
  for (const file of ['package.json', 'package-lock.json']) await copyFile(join(source, file), join(folder, file))
  void report()
  const timer = setInterval(() => void report(), progressMs)
  try {
    // Told its folder in so many words: npm exports another one to the scripts that it runs, as this process may be. And
    // without symbolic links, across which it takes the folder for one of its own packages.
    const args = [...npmArgs, ...(install.npmArgs ?? []), '--prefix', await realpath(folder)]
    await run('npm', args, signal, { fatal: unwritten })
  } finally {
    clearInterval(timer)
  }
  await install.complete(folder, signal)
  await run('chmod', ['-R', 'a-w,a+rX', folder], signal)
  // A power cut must not leave the folder's name without its content.
  await run('sync', ['-f', folder], signal).catch(() => signal.throwIfAborted())
}

/**
 * Installs locked packages on this host and answers their folder; at once when it is there. Of several processes one
 * installs and the others wait. Other users can read it, and nobody can write. A crash or failure half-way leaves a
 * folder that is never used and is removed by the next call. Throws with npm's last words when npm fails or the disk is
 * full, after 15 minutes, or the signal's reason.
 */
export async function installLocked(install: LockedInstall): Promise<string> {
  const { folder, title, progress } = install
  if (await exists(folder)) return folder
  const signal = AbortSignal.any([install.signal, AbortSignal.timeout(deadlineMs)])
  const parent = dirname(folder)
  const prefix = `${basename(folder)}.installing-`
  await mkdir(parent, { recursive: true })
  await chmod(parent, 0o755) // whatever the umask: agents run from it as other users

  using _ = await lock(
    `${folder}.lock`,
    () => progress(`${title} is being installed by another process: waiting for it`),
    signal,
  )
  if (await exists(folder)) return folder
  for (const name of await readdir(parent)) if (name.startsWith(prefix)) await discard(join(parent, name))
  // Never the name of a dead process's folder: its npm may live on for a while and write there.
  const temporary = join(parent, `${prefix}${process.pid}-${Date.now()}`)
  try {
    await fill(temporary, install, signal)
    await rename(temporary, folder)
  } catch (cause) {
    await discard(temporary)
    install.signal.throwIfAborted()
    throw new Error(`${title} could not be installed: ${(cause as Error).message}`, { cause })
  }
  progress(`${title} is installed`)
  return folder
}
