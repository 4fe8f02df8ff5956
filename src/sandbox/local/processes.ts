import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readlinkSync } from 'node:fs'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { setImmediate } from 'node:timers/promises'
import pMap from 'p-map'
import { poll } from '#platform/poll.ts'
import { commandAsUser } from '#sandbox/command-as-user.ts'
import { type ProcessStat, parseStat } from '#sandbox/process-stat.ts'

/** Identifies a process permanently: a later process may have its pid, but then another start time. */
export interface ProcessId {
  pid: number
  /** In the kernel's ticks since boot. */
  startTime: string
}

/** The owner of a sandbox's processes. */
export interface Owner {
  /** The user of this sandbox alone; null if it runs as the control plane's own. */
  uid: number | null
  home: string
  /** The leader of the gateway's session, alive or not. */
  gateway: ProcessId | null
  /** The first process of its jail, alive or not; null without a jail. */
  init: ProcessId | null
}

const pollMs = 50
const killTimeoutMs = 10_000
const signalTimeoutMs = 1000
/** Processes between two turns of the event loop. Each takes some 20 µs. */
const processesAtOnce = 50
/** Environments read at the same time: `readFile` allocates 64 KiB for each. */
const environmentsAtOnce = 20

/** Whether only the exit code is left of a process. Until its last thread has ended, it holds its files and ports. */
const isZombie = (state: string, threads: number) => 'ZX'.includes(state) && threads <= 1

/**
 * A file of the kernel about a process; '' if it cannot be read: the process has ended, or is hidden from this user.
 * The read is synchronous, because it does not wait, and because `readFile` allocates 64 KiB for each file.
 */
export function procFile(pid: number, file: 'stat' | 'status'): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch {
    return ''
  }
}

/** null for a process that has ended, is a zombie, or is hidden from this user. */
export function readStat(pid: number): ProcessStat | null {
  const stat = parseStat(procFile(pid, 'stat'))
  return stat && !isZombie(stat.state, stat.threads) ? stat : null
}

/** The real user of a living process. The owner of its folder in /proc would be root for one that hides its memory. */
function readUid(pid: number): number | null {
  const status = procFile(pid, 'status')
  const uid = /^Uid:\t(\d+)/m.exec(status)?.[1]
  const state = /^State:\t(.)/m.exec(status)?.[1]
  const threads = /^Threads:\t(\d+)/m.exec(status)?.[1]
  return !uid || !state || isZombie(state, Number(threads)) ? null : Number(uid)
}

/** Whether the process is alive and, with a uid, belongs to that user. */
export const isAlive = ({ pid, startTime }: ProcessId, uid: number | null): boolean =>
  readStat(pid)?.startTime === startTime && (uid === null || readUid(pid) === uid)

const allPids = async () => (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number)

/** The results of `see` for each process. The event loop turns meanwhile, so a process may end before `see` gets it. */
export async function inTurns<T>(pids: readonly number[], see: (pid: number) => T): Promise<T[]> {
  const seen: T[] = []
  for (const pid of pids) {
    seen.push(see(pid))
    if (seen.length % processesAtOnce === 0) await setImmediate()
  }
  return seen
}

/** The results of `see` for all processes of this host, without null, with `inTurns`. */
export async function ofAllProcesses<T>(see: (pid: number) => T | null): Promise<T[]> {
  const seen = await inTurns(await allPids(), see)
  return seen.filter((found) => found !== null)
}

/** The users that have a living process. */
export const usersWithProcesses = async (): Promise<Set<number>> => new Set(await ofAllProcesses(readUid))

/** null for a process that has ended, or is hidden from this user. */
function namespaceOf(pid: number, kind: 'pid' | 'user'): string | null {
  try {
    return readlinkSync(`/proc/${pid}/ns/${kind}`)
  } catch {
    return null
  }
}

function isInSession({ gateway }: Owner, { session }: ProcessStat): boolean {
  if (session !== gateway?.pid) return false
  const leader = readStat(gateway.pid)
  return !leader || leader.startTime === gateway.startTime // otherwise another process leads the session by now
}

async function isOfHome({ home }: Owner, { pid, terminal }: ProcessStat): Promise<boolean> {
  const isBelow = (path: string) => path === home || path.startsWith(`${home}/`)
  const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '')
  if (environment.split('\0').some((line) => line.startsWith('HOME=') && isBelow(line.slice(5)))) return true
  // A process on a terminal may be an operator's shell.
  return terminal === '0' && isBelow(await readlink(`/proc/${pid}/cwd`).catch(() => ''))
}

/**
 * The living processes in a jail, of both rooms, without its first one; null if it has ended. The rooms share their
 * user namespace, also with the programs that hold the jail open, which see the processes of the host.
 */
export async function processesInJail(init: ProcessId): Promise<number[] | null> {
  const [jail, host] = [namespaceOf(init.pid, 'user'), namespaceOf(process.pid, 'pid')]
  if (jail === null) return null
  const pids = await ofAllProcesses((pid) => {
    if (pid === init.pid || namespaceOf(pid, 'user') !== jail || namespaceOf(pid, 'pid') === host) return null
    return readStat(pid) && pid
  })
  // Another jail may have the number of its namespace by now.
  return isAlive(init, null) ? pids : null
}

/**
 * The living processes of a sandbox, including those that left the gateway's session, and those of its jail. Without a
 * separate user they are recognized by their session, their HOME, or their working folder.
 */
export async function processesOf(owner: Owner): Promise<number[]> {
  const { uid, init } = owner
  if (uid !== null) return ofAllProcesses((pid) => (readUid(pid) === uid ? pid : null))
  const host = namespaceOf(process.pid, 'pid')
  const found = await ofAllProcesses((pid) => {
    const stat = pid === process.pid ? null : readStat(pid)
    if (!stat) return null
    if (isInSession(owner, stat)) return { stat, isOwn: true }
    // The jail finds its own processes. Reading the environment of those in other jails may take seconds: the kernel
    // locks the memory of a process that forks.
    return init && namespaceOf(pid, 'pid') !== host ? null : { stat, isOwn: false }
  })
  const own = await pMap(found, async ({ stat, isOwn }) => (isOwn || (await isOfHome(owner, stat)) ? [stat.pid] : []), {
    concurrency: environmentsAtOnce,
  })
  const inJail = init && (await processesInJail(init))
  const jailed = inJail ? [init.pid, ...inJail] : []
  return [...new Set([...jailed, ...own.flat()])]
}

/**
 * Signals a process, or with a negative pid its group. Does nothing if it has ended, or runs as another user by now.
 */
export function signalProcess(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (!['ESRCH', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
}

/** Signals all at once, as the user itself, so that the kernel spares the processes of others, and no fork escapes. */
async function signalAll(owner: Owner, pids: readonly number[], name: 'TERM' | 'KILL'): Promise<void> {
  if (owner.uid === null) {
    for (const pid of pids) signalProcess(pid, `SIG${name}`)
    return
  }
  const [program, ...rest] = commandAsUser(owner.uid, ['/bin/sh', '-c', `kill -${name} -1`])
  // The sandbox's processes may stop this one before it has signalled them.
  const limit = { timeout: signalTimeoutMs, killSignal: 'SIGKILL' } as const
  const child = spawn(program, rest, { ...limit, env: {}, cwd: '/', stdio: 'ignore' })
  await once(child, 'exit')
  if (child.signalCode === null || name !== 'KILL') return
  for (const pid of pids) if (readUid(pid) === owner.uid) signalProcess(pid, 'SIGKILL')
}

/**
 * Ends every process of a sandbox by SIGTERM, and after the grace time by SIGKILL. Throws when some are alive 10 s
 * after that.
 */
export async function endProcesses(owner: Owner, options: { graceMs: number }, signal: AbortSignal): Promise<void> {
  const killAt = performance.now() + options.graceMs
  let alive: number[] = []
  let isAsked = false
  async function haveEnded(): Promise<boolean> {
    alive = await processesOf(owner)
    if (alive.length === 0) return true
    if (performance.now() >= killAt) await signalAll(owner, alive, 'KILL')
    else if (!isAsked) await signalAll(owner, alive, 'TERM')
    isAsked = true
    return false
  }
  if (!(await poll(haveEnded, { pauseMs: pollMs, timeoutMs: options.graceMs + killTimeoutMs, signal })))
    throw new Error(`${alive.length} processes of a sandbox cannot be killed`)
}
