import { readdir, readFile, readlink, stat } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

const pollMs = 50
const killTimeoutMs = 5000

/** A process, told apart from a later one under the same number by its start time, and from one before a reboot. */
export interface ProcessIdentity {
  pid: number
  /** In clock ticks since boot: field 22 of `/proc/<pid>/stat`. */
  startTime: string
  bootId: string
}

const isGone = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && ['ENOENT', 'ESRCH', 'EACCES', 'EPERM'].includes(String(error.code))

/** null instead of what cannot be read because the process, or the right to look at it, is not there. */
const orNull = <T>(reading: Promise<T>): Promise<T | null> =>
  reading.catch((error: unknown) => {
    if (isGone(error)) return null
    throw error
  })

let bootId: string | undefined
const currentBootId = async () => {
  bootId ??= (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()
  return bootId
}

/** The fields of a `/proc/<pid>/stat` line that matter. The name in parentheses may hold anything, spaces included. */
function parseStat(line: string) {
  const fields = line
    .slice(line.lastIndexOf(')') + 2)
    .trim()
    .split(' ')
  return { pid: Number.parseInt(line, 10), state: fields[0] ?? '', startTime: fields[19] ?? '' }
}

/** What a launcher wrote of itself: its `/proc/self/stat`, then the boot's id. Null when it is cut short. */
export function parseIdentity(text: string): ProcessIdentity | null {
  const [line, boot] = text.split('\n')
  if (!line || !boot) return null
  const { pid, startTime } = parseStat(line)
  return Number.isInteger(pid) && startTime ? { pid, startTime, bootId: boot } : null
}

/** Whether exactly this process still runs. A zombie does not. */
export async function isAlive({ pid, startTime, bootId }: ProcessIdentity): Promise<boolean> {
  if (bootId !== (await currentBootId())) return false
  const line = await orNull(readFile(`/proc/${pid}/stat`, 'utf8'))
  if (line === null) return false
  const now = parseStat(line)
  return now.startTime === startTime && now.state !== 'Z' && now.state !== 'X'
}

/** Sends a signal to exactly this process, if it still runs. */
export async function sendSignal(identity: ProcessIdentity, signal: NodeJS.Signals): Promise<void> {
  if (!(await isAlive(identity))) return
  try {
    process.kill(identity.pid, signal)
  } catch (error) {
    if (!isGone(error)) throw error
  }
}

/** Waits until the process has ended, at most `timeoutMs`; whether it has. */
export async function hasEnded(identity: ProcessIdentity, timeoutMs: number, signal: AbortSignal): Promise<boolean> {
  for (const deadline = performance.now() + timeoutMs; performance.now() < deadline; ) {
    if (!(await isAlive(identity))) return true
    await sleep(pollMs, undefined, { signal })
  }
  return !(await isAlive(identity))
}

/** Which processes belong to a sandbox. */
export interface Belonging {
  /** The sandbox's own user; null when it shares Chowder's. */
  uid: number | null
  /** The sandbox's folder: what works in it, or was told of it in its environment, belongs to it as well. */
  home: string
}

async function belongs(pid: number, { uid, home }: Belonging): Promise<boolean> {
  if (uid !== null) return (await orNull(stat(`/proc/${pid}`)))?.uid === uid
  const folder = await orNull(readlink(`/proc/${pid}/cwd`))
  if (folder === home || folder?.startsWith(`${home}/`)) return true
  const environment = await orNull(readFile(`/proc/${pid}/environ`, 'utf8'))
  return environment?.split('\0').some((entry) => entry.endsWith(`=${home}/state`)) ?? false
}

async function processesOf(belonging: Belonging): Promise<ProcessIdentity[]> {
  const found: ProcessIdentity[] = []
  for (const name of await readdir('/proc')) {
    const pid = Number(name)
    if (!Number.isInteger(pid) || pid === process.pid || !(await belongs(pid, belonging))) continue
    const line = await orNull(readFile(`/proc/${pid}/stat`, 'utf8'))
    if (line === null) continue
    const { state, startTime } = parseStat(line)
    if (state !== 'Z' && state !== 'X') found.push({ pid, startTime, bootId: await currentBootId() })
  }
  return found
}

/** Kills every process of a sandbox, also those that it started meanwhile. Throws when one outlives that for 5 s. */
export async function killAll(belonging: Belonging, signal: AbortSignal): Promise<void> {
  const deadline = performance.now() + killTimeoutMs
  for (;;) {
    const left = await processesOf(belonging)
    if (left.length === 0) return
    for (const identity of left) await sendSignal(identity, 'SIGKILL')
    if (performance.now() > deadline)
      throw new Error(`processes ${left.map(({ pid }) => pid).join(', ')} cannot be killed`)
    await sleep(pollMs, undefined, { signal })
  }
}
