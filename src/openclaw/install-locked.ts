import { copyFile, readdir, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import type { Progress } from '#sandbox/driver.ts'
import { exists, makeFolderOnce } from './make-once.ts'
import { runProgram } from './run-program.ts'

const timeoutMs = 15 * 60_000
const progressMs = 2000

/** npm's message for a file that it could not write, on a full disk for one. It goes on to the end, and exits with 0. */
const unwritten = /TAR_ENTRY_ERROR.*/

/** `npm ci` leaves nothing to chance: exactly the locked packages, checked against their hashes, and no script is run. */
const npmArgs = ['ci', '--ignore-scripts', '--omit=dev', '--no-audit', '--no-fund', '--no-progress', '--loglevel=warn']

export interface LockedInstall {
  /** The folder with `package.json` and `package-lock.json`. */
  source: string
  /** Where the packages will be: a name that changes with the lock. */
  folder: string
  /** The name in messages. */
  title: string
  /** The least number of packages. */
  packages: number
  /** Arguments of npm besides those that are always given. */
  npmArgs?: readonly string[]
  /** Checks and completes npm's install, while the folder can still be written. */
  complete(folder: string, signal: AbortSignal): Promise<void>
  progress: Progress
  signal: AbortSignal
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
  for (const file of ['package.json', 'package-lock.json']) await copyFile(join(source, file), join(folder, file))
  void report()
  const timer = setInterval(() => void report(), progressMs)
  try {
    // The folder is named, since npm exports another one to the scripts that it runs, and this process may be one. It is
    // named without symbolic links, across which npm takes the folder for one of its own packages.
    const args = [...npmArgs, ...(install.npmArgs ?? []), '--prefix', await realpath(folder)]
    await runProgram('npm', args, signal, { fatal: unwritten })
  } finally {
    clearInterval(timer)
  }
  await install.complete(folder, signal)
}

/**
 * Installs locked packages on this host, as makeFolderOnce does; returns their folder, at once when it is there. Throws with
 * the end of npm's output when npm fails or the disk is full, after 15 minutes, or the signal's reason.
 */
export const installLocked = (install: LockedInstall): Promise<string> =>
  makeFolderOnce({
    folder: install.folder,
    title: install.title,
    done: 'installed',
    timeoutMs,
    fill: (folder, signal) => fill(folder, install, signal),
    progress: install.progress,
    signal: install.signal,
  })
