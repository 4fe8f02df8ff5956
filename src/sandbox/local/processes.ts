import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, readlinkSync } from 'node:fs'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { poll } from '#platform/poll.ts'
import { commandAsUser } from '#sandbox/command-as-user.ts'
import { type ProcessStat, parseStat } from '#sandbox/process-stat.ts'

/** Identifies a process for ever: a later process may have its pid, but then with another start time. */
export interface ProcessId {
  pid: number
  /** In the kernel's ticks since boot. */
  startTime: string
}

/** The owner of a sandbox's processes. */
export interface Owner {
  /** The user that only this sandbox has; null when it runs as the control plane's own. */
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

/** Whether only the exit code is left of a process. Until its last thread has ended, it holds its files and ports. */
const isZombie = (state: string, threads: number) => 'ZX'.includes(state) && threads <= 1

/** null for a process that has ended, is a zombie, or is hidden from this user. */
export async function readStat(pid: number): Promise<ProcessStat | null> {
  const stat = parseStat(await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ''))
  return stat && !isZombie(stat.state, stat.threads) ? stat : null
}

/** The same as `readStat`, without a turn of the event loop: for many processes, over and over. */
export function readStatNow(pid: number): ProcessStat | null {
  try {
    const stat = parseStat(readFileSync(`/proc/${pid}/stat`, 'utf8'))
    return stat && !isZombie(stat.state, stat.threads) ? stat : null
  } catch {
    return null
  }
}

/** The same as `isAlive`, without a turn of the event loop. */
export const hasEnded = ({ pid, startTime }: ProcessId): boolean => readStatNow(pid)?.startTime !== startTime

/** The real user of a living process. The owner of its folder in /proc would be root for one that hides its memory. */
async function readUid(pid: number): Promise<number | null> {
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const uid = /^Uid:\t(\d+)/m.exec(status)?.[1]
  const state = /^State:\t(.)/m.exec(status)?.[1]
  const threads = /^Threads:\t(\d+)/m.exec(status)?.[1]
  return !uid || !state || isZombie(state, Number(threads)) ? null : Number(uid)
}

/** Whether the process is alive and, with a uid, belongs to that user. */
export async function isAlive({ pid, startTime }: ProcessId, uid: number | null): Promise<boolean> {
  if ((await readStat(pid))?.startTime !== startTime) return false
  return uid === null || (await readUid(pid)) === uid
}

export const allPids = async () => (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number)

/** The users that have a living process. */
export async function usersWithProcesses(): Promise<Set<number>> {
  const users = await Promise.all((await allPids()).map(readUid))
  return new Set(users.filter((uid) => uid !== null))
}

type Namespace = 'pid' | 'user'
const namespaceOf = (pid: number, kind: Namespace = 'pid') => readlink(`/proc/${pid}/ns/${kind}`).catch(() => null)

/** null for a process that has ended, or is hidden from this user. Without a turn of the event loop, as `readStatNow`. */
export function namespaceNow(pid: number, kind: Namespace): string | null {
  try {
    return readlinkSync(`/proc/${pid}/ns/${kind}`)
  } catch {
    return null
  }
}

/** Recognizes a process of a sandbox without a user of its own: by its session, its HOME, or its working folder. */
async function isOfHome({ home, gateway, init }: Owner, pid: number): Promise<boolean> {
  const stat = await readStat(pid)
  if (!stat || pid === process.pid) return false
  if (gateway && stat.session === gateway.pid) {
    const leader = await readStat(gateway.pid)
    if (!leader || leader.startTime === gateway.startTime) return true // else another process leads the session by now
  }
  // The jail finds its own processes. To read the environment of those in other jails may take seconds: the kernel locks
  // the memory of a process that forks.
  if (init && (await namespaceOf(pid)) !== (await namespaceOf(process.pid))) return false
  const isBelow = (path: string) => path === home || path.startsWith(`${home}/`)
  const environment = await readFile(`/proc/${pid}/environ`, 'utf8').catch(() => '')
  if (environment.split('\0').some((line) => line.startsWith('HOME=') && isBelow(line.slice(5)))) return true
  // A process on a terminal may be an operator's shell.
  return stat.terminal === '0' && isBelow(await readlink(`/proc/${pid}/cwd`).catch(() => ''))
}

/**
 * The living processes in a jail, of both rooms, without its first one; null when it has ended. The rooms have their
 * user namespace in common, also with the programs that hold the jail open, which see the processes of the host.
 */
export async function processesInJail(init: ProcessId): Promise<number[] | null> {
  const [jail, host] = await Promise.all([namespaceOf(init.pid, 'user'), namespaceOf(process.pid)])
  if (jail === null || !(await isAlive(init, null))) return null
  const isInRoom = async (pid: number) => {
    if (pid === init.pid || (await namespaceOf(pid, 'user')) !== jail) return false
    return (await namespaceOf(pid)) !== host && (await readStat(pid)) !== null
  }
  const pids = await allPids()
  const isInside = await Promise.all(pids.map(isInRoom))
  return pids.filter((_, index) => isInside[index])
}

/** The living processes of a sandbox, also those that left the gateway's session, and those of its jail. */
export async function processesOf(owner: Owner): Promise<number[]> {
  const pids = await allPids()
  const isOwn = await Promise.all(
    pids.map(async (pid) => (owner.uid === null ? isOfHome(owner, pid) : (await readUid(pid)) === owner.uid)),
  )
  const inJail = owner.init && owner.uid === null ? await processesInJail(owner.init) : null
  const jailed = inJail && owner.init ? [owner.init.pid, ...inJail] : []
  return [...new Set([...jailed, ...pids.filter((_, index) => isOwn[index])])]
}

/** Signals a process, or with a negative pid its group. Does nothing when it has ended, or runs as another user by now. */
export function signalProcess(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (!['ESRCH', 'EPERM'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error
  }
}

/** Signals all at once, as the user itself: so the kernel spares the processes of others, and no fork escapes. */
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
  for (const pid of pids) if ((await readUid(pid)) === owner.uid) signalProcess(pid, 'SIGKILL')
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
