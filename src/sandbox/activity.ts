import type { Activity } from './driver.ts'
import { type ProcessStat, ticksPerSecond } from './process-stat.ts'

/** The voluntary context switches of a process's main thread, in its /proc/<pid>/status. */
export function switchesIn(status: string): number | null {
  const count = /(?:^|:)voluntary_ctxt_switches:\t(\d{1,15})$/m.exec(status)?.[1]
  return count === undefined ? null : Number(count)
}

/**
 * The activity of a gateway, from all processes of its sandbox and the switches of its main thread; null if it is not
 * among them. Only its last child counts: a thread that waits for a child starts no other one meanwhile, and background
 * work of a child is no evidence about the gateway.
 */
export function activityOf(pid: number, processes: readonly ProcessStat[], switches: number | null): Activity | null {
  const gateway = processes.find((process) => process.pid === pid)
  if (!gateway || switches === null) return null
  const childrenOf = Map.groupBy(processes, ({ parent }) => parent)
  const counted = new Set([gateway])
  const last = childrenOf.get(pid)?.reduce((a, b) => (Number(b.startTime) >= Number(a.startTime) ? b : a))
  const isStopped = 'Tt'.includes(gateway.state) // it waits for no child
  if (last && !isStopped) counted.add(last)
  for (const member of counted) {
    if (member === gateway) continue
    for (const child of childrenOf.get(member.pid) ?? []) counted.add(child)
  }
  const ticks = [...counted].reduce((sum, member) => sum + member.ticks, 0)
  return { switches, cpuSeconds: ticks / ticksPerSecond }
}
