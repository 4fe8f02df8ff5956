import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { constants, cpus, setPriority } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { type ProcessStat, ticksPerSecond } from '#sandbox/process-stat.ts'
import type { BusyThreads, Priority } from '#sandbox/processor-demand.ts'
import { createPriorityWatch, type PriorityWatch } from './priority-watch.ts'
import { countBusy, isAlive, namespaceOf, ofAllProcesses, type ProcessId, readStat } from './processes.ts'

/** A sandbox in a jail without a control group. */
export interface Jailed {
  /** The first process of the jail; it may have ended. */
  init: ProcessId
  /** The leader of the gateway's session. */
  gateway: ProcessId
  /** The processors that it may use. */
  cpus: number
}

interface Jail extends Jailed {
  /** Names the jail for ever: a later one may get the number of its namespace. */
  id: string
  processes: ProcessStat[]
  /** The processor time of its processes since its first look, in ticks. */
  ticks: number
}

/** To look at all processes of a host is work: 2 ms of it with 150 of them, and 11 ms with 600. */
const pauseMs = 2000
const lowest = constants.priority.PRIORITY_LOW
/**
 * Of sessions. With the usual one, a session has a third of the share of Chowder and of each connection of its database,
 * so that a request does not wait for agents; with the low one a tenth of that.
 */
const niceOf: Record<Priority, number> = { usual: 5, low: 15, lowest }
/** The kernel takes one change of a session's priority in 100 ms, from all users other than root together. */
const sessionPauseMs = 110
/** Of a look: the other ones have to wait for the next look. */
const maxSessions = 5

/** The threads of a process; none of one that has ended. */
function threadsOf({ pid, threads }: ProcessStat): number[] {
  if (threads === 1) return [pid]
  try {
    return readdirSync(`/proc/${pid}/task`).map(Number)
  } catch {
    return []
  }
}

/** As `countBusy`; what a process with one thread did is known already. */
async function busyOf(processes: readonly ProcessStat[], most: number): Promise<BusyThreads> {
  const alone = (wanted: string) => processes.filter(({ threads, state }) => threads === 1 && state === wanted).length
  const [runnable, onDisk] = [alone('R'), alone('D')]
  if (runnable >= most) return { runnable, onDisk }
  const others = processes.filter(({ threads }) => threads > 1).flatMap(threadsOf)
  const found = await countBusy(others, most - runnable)
  return { runnable: runnable + found.runnable, onDisk: onDisk + found.onDisk }
}

/** Lowers all threads of a process. One that has ended is no error. */
function lower(stat: ProcessStat): void {
  if ((stat.nice === lowest && stat.threads === 1) || !isAlive(stat, null)) return
  for (const thread of threadsOf(stat)) {
    try {
      setPriority(thread, lowest)
    } catch {}
  }
}

/** Whether the session of a process has a priority; null where the kernel does not group processes by session. */
function sessionHas({ pid }: ProcessStat, nice: number): boolean | null {
  try {
    return readFileSync(`/proc/${pid}/autogroup`, 'utf8').endsWith(` nice ${nice}\n`)
  } catch {
    return null // or it has ended
  }
}

/** Returns false where the process hides from its user, or another change was a moment ago. */
function setOfSession(process: ProcessStat, nice: number): boolean {
  if (!isAlive(process, null)) return false
  try {
    writeFileSync(`/proc/${process.pid}/autogroup`, String(nice))
    return true
  } catch {
    return false
  }
}

/**
 * Has the others go before sandboxes with a low priority, as far as the kernel lets a user. Where it groups processes by
 * session, the sessions have the priority of the sandbox, also that of the gateway. With the lowest one, so have all of
 * its processes but those of the gateway's session, and what these begin: only root could raise it again. A program that
 * wants to can escape both. `list` returns the sandboxes; calls in the 2 s after a look do nothing.
 */
export function createPriorities(
  list: () => Promise<Jailed[]>,
  // What a jail has used begins with its gateway.
  look: PriorityWatch = createPriorityWatch(async () => 0),
): () => Promise<void> {
  let before = new Map<string, Jail>()
  /** Those whose sessions have the usual priority, for sure. */
  let usual = new Set<string>()
  let nextAt = 0

  async function jailsNow(): Promise<Jail[]> {
    const [own, host] = [namespaceOf(process.pid, 'user'), namespaceOf(process.pid, 'pid')]
    const jails = new Map<string, Jail>()
    for (const sandbox of await list()) {
      const { pid, startTime } = sandbox.init
      const namespace = isAlive(sandbox.init, null) ? namespaceOf(pid, 'user') : null
      if (namespace === null || namespace === own) continue
      const id = `${pid} ${startTime}`
      jails.set(namespace, { ...sandbox, id, processes: [], ticks: before.get(id)?.ticks ?? 0 })
    }
    if (jails.size === 0) return []
    const found = await ofAllProcesses((pid) => {
      const jail = jails.get(namespaceOf(pid, 'user') ?? '')
      // The programs that hold the jail open see the processes of the host.
      const stat = jail && namespaceOf(pid, 'pid') !== host ? readStat(pid) : null
      return jail && stat ? { jail, stat } : null
    })
    for (const { jail, stat } of found) jail.processes.push(stat)
    // Another jail may have the number of a namespace by now.
    return [...jails.values()].filter(({ init }) => isAlive(init, null))
  }

  function addTicks(jail: Jail): void {
    const known = new Map(before.get(jail.id)?.processes.map((stat) => [stat.pid, stat]))
    for (const { pid, startTime, ownTicks } of jail.processes) {
      const last = known.get(pid)
      jail.ticks += ownTicks - (last?.startTime === startTime ? last.ownTicks : 0)
    }
  }

  return async () => {
    if (performance.now() < nextAt) return
    nextAt = performance.now() + pauseMs
    const jails = await jailsNow()
    jails.forEach(addTicks)
    before = new Map(jails.map((jail) => [jail.id, jail]))
    const used = jails.map(({ id, ticks, cpus: most, processes }) => ({
      id,
      seconds: ticks / ticksPerSecond,
      processors: Math.min(most, cpus().length),
      countBusy: (wanted: number) => busyOf(processes, wanted),
    }))
    const priorities = new Map((await look(used)).map((seen) => [seen.id, seen.priority]))
    const priorityNow = ({ id }: Jail) => priorities.get(id) ?? 'usual'
    for (const { processes, gateway } of jails.filter((jail) => priorityNow(jail) === 'lowest'))
      for (const stat of processes) if (stat.session !== gateway.pid) lower(stat)

    let changes = 0
    /** Returns whether all sessions of a jail had the priority. */
    async function setSessions({ processes }: Jail, nice: number): Promise<boolean> {
      const sessions = [...new Map(processes.map((stat) => [stat.session, stat])).values()]
      const others = sessions.filter((stat) => sessionHas(stat, nice) === false)
      for (const stat of others) {
        if (changes === maxSessions) break
        if (!setOfSession(stat, nice)) continue
        changes += 1
        await sleep(sessionPauseMs)
      }
      return others.length === 0
    }
    const others = jails.filter((jail) => priorityNow(jail) === 'usual')
    const wereUsual = usual
    usual = new Set()
    for (const jail of others) if (wereUsual.has(jail.id) || (await setSessions(jail, niceOf.usual))) usual.add(jail.id)
    const lowered = jails.filter((jail) => priorityNow(jail) !== 'usual')
    for (const jail of lowered) await setSessions(jail, niceOf[priorityNow(jail)])
    // Sessions that are new.
    for (const jail of others) if (wereUsual.has(jail.id)) await setSessions(jail, niceOf.usual)
  }
}
