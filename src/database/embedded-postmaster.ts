import { randomBytes } from 'node:crypto'
import { link, open, readFile, readlink, rename, rm, stat } from 'node:fs/promises'
import { connect as openSocket } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { freePort } from '#platform/free-port.ts'
import { type Cluster, runProgram } from './embedded-cluster.ts'

/** The address of a PostgreSQL: a socket folder or an IP address, and a port. */
export interface Address {
  host: string
  port: number
}

/** Part of the socket file's name. Nothing listens on this TCP port. */
const socketPort = 5432
const socketFile = (cluster: Cluster): string => join(cluster.socketFolder, `.s.PGSQL.${socketPort}`)

/** The kernel allows 107 bytes, and PostgreSQL appends to the name. */
const maxSocketPath = 99

const failedWith = (error: unknown, ...codes: string[]): boolean =>
  error instanceof Error && 'code' in error && codes.includes(String(error.code))

/** Reads a lock file of PostgreSQL: the first line is its pid, and the fourth to sixth are its address. */
async function readLockFile(
  path: string,
): Promise<{ text: string; pid: number; address: Address | undefined } | undefined> {
  const text = await readFile(path, 'utf8').catch((error) => {
    if (failedWith(error, 'ENOENT')) return ''
    throw error
  })
  const [pid, , , port, socketFolder, listenAddress] = text.split('\n')
  // PostgreSQL writes the file line by line during its start.
  if (!pid || !(Number(pid) > 0)) return undefined
  const host = socketFolder || listenAddress
  return { text, pid: Number(pid), address: port && host ? { host, port: Number(port) } : undefined }
}

type Identity = 'postmaster' | 'other process' | 'no process'

/** Whether a process is the PostgreSQL of this cluster. The pid alone is no proof, because pids are reused. */
async function identify(pid: number, cluster: Cluster): Promise<Identity> {
  const folder = await stat(cluster.folder)
  try {
    const [workingFolder, program] = await Promise.all([stat(`/proc/${pid}/cwd`), readlink(`/proc/${pid}/exe`)])
    const isInCluster = workingFolder.dev === folder.dev && workingFolder.ino === folder.ino
    // The kernel marks a program whose file was replaced during its run.
    return isInCluster && basename(program).replace(' (deleted)', '') === 'postgres' ? 'postmaster' : 'other process'
  } catch (error) {
    const owner = await stat(`/proc/${pid}`).catch(() => undefined)
    if (!owner) return 'no process'
    // A zombie process has neither a working folder nor a program.
    if (!failedWith(error, 'EACCES', 'EPERM')) return 'other process'
    // Root in a container without SYS_PTRACE cannot read other users' working folders, but can read command lines.
    const commandLine = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
    return owner.uid === folder.uid && commandLine.split('\0').includes(cluster.folder) ? 'postmaster' : 'other process'
  }
}

/** Whether a server accepts connections at the address within a second. */
const isListening = ({ host, port }: Address): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = host.startsWith('/') ? openSocket(join(host, `.s.PGSQL.${port}`)) : openSocket(port, host)
    const finish = (isConnected: boolean) => {
      socket.destroy()
      resolve(isConnected)
    }
    socket.setTimeout(1000, () => finish(false))
    socket.once('connect', () => finish(true)).once('error', () => finish(false))
  })

/** Removes a stale lock file, but not the new one of a PostgreSQL that has started in the meantime. */
async function removeStale(path: string, text: string): Promise<void> {
  const renamed = `${path}.${randomBytes(6).toString('hex')}`
  try {
    await rename(path, renamed)
    if ((await readFile(renamed, 'utf8')) !== text) await link(renamed, path)
  } catch (error) {
    if (!failedWith(error, 'ENOENT', 'EEXIST')) throw error
  } finally {
    await rm(renamed, { force: true })
  }
}

/**
 * Finds the PostgreSQL that runs on the cluster; undefined when none does. At the beginning of its start it has no
 * address. Lock files that name another process are removed, because PostgreSQL itself trusts them.
 */
export async function findPostmaster(cluster: Cluster): Promise<{ address: Address | undefined } | undefined> {
  const pidFile = join(cluster.folder, 'postmaster.pid')
  const lock = await readLockFile(pidFile)
  const identity = lock ? await identify(lock.pid, cluster) : 'no process'
  if (identity === 'postmaster') return { address: lock?.address }
  // The pid of a PostgreSQL in another container is not valid here, but its socket in the shared folder is.
  if (lock?.address?.host === cluster.socketFolder && (await isListening(lock.address)))
    return { address: lock.address }
  if (lock && identity === 'other process') await removeStale(pidFile, lock.text)
  const socketLockFile = `${socketFile(cluster)}.lock`
  const socketLock = await readLockFile(socketLockFile)
  if (socketLock && (await identify(socketLock.pid, cluster)) === 'other process') {
    await removeStale(socketLockFile, socketLock.text)
  }
  return undefined
}

/** pg_ctl passes the settings to a shell. */
const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`

async function settings(cluster: Cluster, durable: boolean, port: number | undefined): Promise<string> {
  const fits = Buffer.byteLength(socketFile(cluster)) <= maxSocketPath
  const address = fits
    ? ['listen_addresses=', `unix_socket_directories="${cluster.socketFolder}"`, `port=${socketPort}`]
    : ['listen_addresses=127.0.0.1', 'unix_socket_directories=', `port=${port ?? (await freePort())}`]
  const speed = ['fsync=off', 'full_page_writes=off', 'synchronous_commit=off']
  // A test run shares one between many installations.
  const forTests = durable ? [] : [...speed, 'max_connections=300']
  return [...address, ...forTests, 'log_checkpoints=off'].map((setting) => `-c ${quote(setting)}`).join(' ')
}

/** The part of the log after `offset`, at most its last 2000 bytes. */
async function readLog(path: string, offset: number): Promise<string> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const start = Math.max(offset, size - 2000)
    const { buffer, bytesRead } = await file.read({ position: start, buffer: Buffer.alloc(Math.max(size - start, 1)) })
    return buffer.toString('utf8', 0, bytesRead).trim()
  } finally {
    await file.close()
  }
}

export interface StartOptions {
  /** False is faster, and a power cut may destroy the data. For tests. */
  durable: boolean
  /** The port to listen on at loopback, to keep the address after a restart; by default a free port. */
  port?: number | undefined
}

/** Another start, or a remainder of a killed PostgreSQL, has prevented the start. A later attempt may succeed. */
export class StillInUse extends Error {
  override name = 'StillInUse'
}

const stillInUse =
  /lock file "[^"]*" (already exists|is empty)|shared memory block|could not create any|did not start in time/

/**
 * Starts PostgreSQL in its own session, where it outlives this process, and waits up to 60 s until it accepts
 * connections. Throws StillInUse, or an Error with PostgreSQL's output.
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
  const logged = await readLog(cluster.logFile, size > 10_000_000 ? 0 : size).catch(() => output)
  const message = `the embedded database did not start: ${logged || output} (its log: ${cluster.logFile})`
  throw stillInUse.test(logged + output) ? new StillInUse(message) : new Error(message)
}

/**
 * Stops the cluster's PostgreSQL, disconnects its clients, and waits up to 30 s for its exit. Does nothing when it does
 * not run. Throws an Error when it continues to run.
 */
export async function stopPostmaster(cluster: Cluster): Promise<void> {
  const lock = await readLockFile(join(cluster.folder, 'postmaster.pid'))
  if (!lock) return
  const identity = await identify(lock.pid, cluster)
  // pg_ctl signals the process in the lock file without a check.
  if (identity === 'no process' || identity === 'other process') return
  const { code, output } = await runProgram(
    join(cluster.programs, 'pg_ctl'),
    ['stop', '-m', 'fast', '-w', '-t', '30', '-D', cluster.folder],
    { user: cluster.user, folder: dirname(cluster.folder), deadline: 40_000 },
  )
  if (code !== 0) throw new Error(`the embedded database did not stop: ${output} (its log: ${cluster.logFile})`)
}
