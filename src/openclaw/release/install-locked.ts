import { copyFile, readdir, realpath } from 'node:fs/promises'
import { join } from 'node:path'
import type { Progress } from '#sandbox/driver.ts'
import { exists, makeFolderOnce } from './make-once.ts'
import { runProgram } from './run-program.ts'

const timeoutMs = 15 * 60_000
const progressMs = 2000

/** npm's message for a file that it could not write, such as on a full disk. npm continues, and exits with 0. */
const writeError = /TAR_ENTRY_ERROR.*/

/** `npm ci` installs exactly the locked packages and verifies their hashes. It runs no script of a package. */
const npmArgs = ['ci', '--ignore-scripts', '--omit=dev', '--no-audit', '--no-fund', '--no-progress', '--loglevel=warn']

export interface LockedInstall {
  /** The folder with `package.json` and `package-lock.json`. */
  source: string
  /** The folder to install into. Its name must change with the lock file. */
  folder: string
  /** The name in messages. */
  title: string
  /** The least number of packages. */
  packages: number
  /** Additional arguments of npm. */
  npmArgs?: readonly string[]
  /** Verifies and completes the install of npm, before the folder becomes read-only. */
  complete(folder: string, signal: AbortSignal): Promise<void>
  progress: Progress
  signal: AbortSignal
}

/** Counts the folders with a `package.json`: npm creates all folders first, and then fills one after the other. */
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
  let reported = -1
  const report = async () => {
    const count = Math.min(await countPackages(join(folder, 'node_modules')), packages)
    if (count === reported) return
    reported = count
    progress(`installing ${title}: ${count} of ${packages} packages`, true)
  }
  for (const file of ['package.json', 'package-lock.json']) await copyFile(join(source, file), join(folder, file))
  void report()
  const timer = setInterval(() => void report(), progressMs)
  try {
    // This process may be an npm script, and npm passes its own prefix to scripts: `--prefix` overrides it. The path is
    // resolved, because npm treats a folder behind a symbolic link as one of its own packages.
    const args = [...npmArgs, ...(install.npmArgs ?? []), '--prefix', await realpath(folder)]
    await runProgram('npm', args, signal, { fatal: writeError })
  } finally {
    clearInterval(timer)
  }
  await install.complete(folder, signal)
}

/**
 * Installs locked packages on this host, with makeFolderOnce. Returns their folder, immediately if it exists. Throws
 * InstallError when npm fails, the disk is full or 15 minutes have passed, or the signal's reason.
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
