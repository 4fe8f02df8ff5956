import { activityOf, switchesIn } from '#sandbox/activity.ts'
import type { Activity } from '#sandbox/driver.ts'
import { type ProcessStat, parseStat } from '#sandbox/process-stat.ts'

/** Prints the kernel's figures of all processes of a container. Processes may end meanwhile. */
export const processProbe = [
  'sh',
  '-c',
  'cat /proc/[0-9]*/stat; grep -sH ^voluntary_ctxt_switches: /proc/[0-9]*/status; true',
]

/** The first program of a container is dockerd's own init. */
const initPid = 1

const oldest = (processes: readonly ProcessStat[]): ProcessStat | null =>
  processes.reduce<ProcessStat | null>((a, b) => (a && Number(a.startTime) <= Number(b.startTime) ? a : b), null)

/**
 * The activity of the gateway of a container, from the output of `processProbe`; null if it has none. The gateway is
 * the child of the supervisor, which init started before it adopted any orphan. The agent could write anything into the
 * names of its processes.
 */
export function activityIn(output: string): Activity | null {
  const lines = output.split('\n')
  const processes = lines.map(parseStat).filter((process) => process !== null)
  const firstChildOf = (pid: number) => oldest(processes.filter(({ parent }) => parent === pid))
  const supervisor = firstChildOf(initPid)
  const gateway = supervisor && firstChildOf(supervisor.pid)
  if (!gateway) return null
  const status = lines.find((line) => line.startsWith(`/proc/${gateway.pid}/status:`))
  return activityOf(gateway.pid, processes, switchesIn(status ?? ''))
}
