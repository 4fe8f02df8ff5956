import { randomBytes } from 'node:crypto'
import { link, open, readFile, readlink, rename, rm, stat } from 'node:fs/promises'
import { connect as openSocket } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { freePort } from '#platform/free-port.ts'
import { type Cluster, runProgram } from './embedded-cluster.ts'

/** Where a PostgreSQL listens: a socket folder or an IP address, and a port. */
export interface Address {
  host: string
  port: number
}

/** Names the socket file; nothing listens on this port of the machine. */
const socketPort = 5432
const socketFile = (cluster: Cluster): string => join(cluster.socketFolder, `.s.PGSQL.${socketPort}`)

/** The kernel allows 107 bytes, and PostgreSQL adds to the name. */
const maxSocketPath = 99

const failedWith = (error: unknown, ...codes: string[]): boolean =>
  error instanceof Error && 'code' in error && codes.includes(String(error.code))

/** The lock files of PostgreSQL: the first line is the process, the fourth to sixth are where it listens. */
async function readLockFile(
  path: string,
): Promise<{ text: string; pid: number; address: Address | undefined } | undefined> {
  const text = await readFile(path, 'utf8').catch((error) => {
    if (failedWith(error, 'ENOENT')) return ''
    throw error
  })
  const [pid, , , port, socketFolder, listenAddress] = text.split('\n')
  // The file is written line by line while PostgreSQL starts.
  if (!pid || !(Number(pid) > 0)) return undefined
  const host = socketFolder || listenAddress
  return { text, pid: Number(pid), address: port && host ? { host, port: Number(port) } : undefined }
}

type Identity = 'ours' | 'somebody else' | 'nobody' | 'unknown'

/** Whether a process is the PostgreSQL of this cluster. Its pid alone proves nothing: pids are used again. */
async function identify(pid: number, cluster: Cluster): Promise<Identity> {
  if (process.platform !== 'linux') return 'unknown'
  const folder = await stat(cluster.folder)
  try {
    const [workingFolder, program] = await Promise.all([stat(`/proc/${pid}/cwd`), readlink(`/proc/${pid}/exe`)])
    const isThere = workingFolder.dev === folder.dev && workingFolder.ino === folder.ino
    // The kernel marks a program whose file was replaced meanwhile.
    return isThere && basename(program).replace(' (deleted)', '') === 'postgres' ? 'ours' : 'somebody else'
  } catch (error) {
    const owner = await stat(`/proc/${pid}`).catch(() => undefined)
    if (!owner) return 'nobody'
    // A zombie has neither working folder nor program.
    if (!failedWith(error, 'EACCES', 'EPERM')) return 'somebody else'
    // Root in a container without SYS_PTRACE may not look at other users' folders, but everybody sees command lines.
    const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    return owner.uid === folder.uid && commandLine.split('\0').includes(cluster.folder) ? 'ours' : 'somebody else'
  }
}

/** Whether anything accepts connections there, asked for a second at most. */
const answers = ({ host, port }: Address): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = host.startsWith('/') ? openSocket(join(host, `.s.PGSQL.${port}`)) : openSocket(port, host)
    const finish = (isAnswered: boolean) => {
      socket.destroy()
      resolve(isAnswered)
    }
    socket.setTimeout(1000, () => finish(false))
    socket.once('connect', () => finish(true)).once('error', () => finish(false))
  })

/** Removes a stale lock file, but not one that a PostgreSQL which started just now has put in its place. */
async function removeStale(path: string, text: string): Promise<void> {
  const aside = `${path}.${randomBytes(6).toString('hex')}`
  try {
    await rename(path, aside)
    if ((await readFile(aside, 'utf8')) !== text) await link(aside, path)
  } catch (error) {
    if (!failedWith(error, 'ENOENT', 'EEXIST')) throw error
  } finally {
    await rm(aside, { force: true })
  }
}

/**
 * Finds the PostgreSQL that runs on the cluster, undefined when none does. It has no address yet while it is just
 * starting. Lock files that name a process which is not it are removed, since PostgreSQL itself believes them.
 */
export async function findPostmaster(cluster: Cluster): Promise<{ address: Address | undefined } | undefined> {
  const pidFile = join(cluster.folder, 'postmaster.pid')
  const lock = await readLockFile(pidFile)
  const identity = lock ? await identify(lock.pid, cluster) : 'nobody'
  if (identity === 'ours') return { address: lock?.address }
  // In another container on the same folder it has a pid that means nothing here, but its socket is the same.
  const isReachable = identity === 'unknown' || lock?.address?.host === cluster.socketFolder
  if (lock?.address && isReachable && (await answers(lock.address))) return { address: lock.address }
  if (lock && identity === 'somebody else') await removeStale(pidFile, lock.text)
  const socketLockFile = `${socketFile(cluster)}.lock`
  const socketLock = await readLockFile(socketLockFile)
  if (socketLock && (await identify(socketLock.pid, cluster)) === 'somebody else') {
    await removeStale(socketLockFile, socketLock.text)
  }
  return undefined
}

/** pg_ctl hands the settings to a shell. */
const quote = (text: string): string =>
  process.platform === 'win32' ? `"${text}"` : `'${text.replaceAll("'", "'\\''")}'`

async function settings(cluster: Cluster, durable: boolean, port: number | undefined): Promise<string> {
  const fits = process.platform !== 'win32' && Buffer.byteLength(socketFile(cluster)) <= maxSocketPath
  const place = fits
    ? ['listen_addresses=', `unix_socket_directories="${cluster.socketFolder}"`, `port=${socketPort}`]
    : ['listen_addresses=127.0.0.1', 'unix_socket_directories=', `port=${port ?? (await freePort())}`]
  const speed = durable ? [] : ['fsync=off', 'full_page_writes=off', 'synchronous_commit=off']
  return [...place, ...speed, 'log_checkpoints=off'].map((setting) => `-c ${quote(setting)}`).join(' ')
}

/** What was written to the log from `from` on, at most its last 2000 bytes. */
async function readLog(path: string, from: number): Promise<string> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const start = Math.max(from, size - 2000)
    const { buffer, bytesRead } = await file.read({ position: start, buffer: Buffer.alloc(Math.max(size - start, 1)) })
    return buffer.toString('utf8', 0, bytesRead).trim()
  } finally {
    await file.close()
  }
}

export interface StartOptions {
  /** False trades everything a power cut would take for speed: for tests. */
  durable: boolean
  /** The port to listen on when it is loopback, so that who knows it finds it again; a free one by default. */
  port?: number | undefined
}

/** A start that lost to another one, or to what is left of a PostgreSQL that was killed: worth another try. */
export class StillInUse extends Error {
  override name = 'StillInUse'
}

const stillInUse =
  /lock file "[^"]*" (already exists|is empty)|shared memory block|could not create any|did not start in time/

/**
 * Starts PostgreSQL in a session of its own, where it outlives us, and waits up to 60 s until it accepts connections.
 * Throws StillInUse, or an Error with what PostgreSQL said.
 */
export async function startPostmaster(cluster: Cluster, { durable, port }: StartOptions): Promise<void> {
  const size = await stat(cluster.logFile).then(
    (info) => info.size,
    () => 0,
  )
  if (size > 10_000_000) await rename(cluster.logFile, `${cluster.logFile}.1`)
  const { code, output } = await runProgram(
    join(cluster.programs, 'pg_ctl'),
    [
      ...['start', '-w', '-t', '60', '-D', cluster.folder, '-l', cluster.logFile],
      ...['-o', await settings(cluster, durable, port)],
    ],
    { user: cluster.user, folder: dirname(cluster.folder), deadline: 70_000 },
  )
  if (code === 0) return
  const said = await readLog(cluster.logFile, size > 10_000_000 ? 0 : size).catch(() => output)
  const message = `the embedded database did not start: ${said || output} (its log: ${cluster.logFile})`
  throw stillInUse.test(said + output) ? new StillInUse(message) : new Error(message)
}

/**
 * Stops the cluster's PostgreSQL, whoever is connected, and waits up to 30 s for it. Does nothing when it does not run.
 * Throws an Error when it runs on.
 */
export async function stopPostmaster(cluster: Cluster): Promise<void> {
  const lock = await readLockFile(join(cluster.folder, 'postmaster.pid'))
  if (!lock) return
  const identity = await identify(lock.pid, cluster)
  // pg_ctl signals whatever process the file names.
  if (identity === 'nobody' || identity === 'somebody else') return
  const { code, output } = await runProgram(
    join(cluster.programs, 'pg_ctl'),
    ['stop', '-m', 'fast', '-w', '-t', '30', '-D', cluster.folder],
    { user: cluster.user, folder: dirname(cluster.folder), deadline: 40_000 },
  )
  if (code !== 0) throw new Error(`the embedded database did not stop: ${output} (its log: ${cluster.logFile})`)
}
