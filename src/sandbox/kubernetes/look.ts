import { activityOf, switchesIn } from '#sandbox/activity.ts'
import type { Activity } from '#sandbox/driver.ts'
import { type ProcessStat, parseStat, ticksPerSecond } from '#sandbox/process-stat.ts'

const pageBytes = 4096

/** The output of `image/look.sh`. An agent that controls the processes of its pod could print anything. */
export interface Probe {
  memoryBytes: number | null
  cpuSeconds: number
  processes: number
  diskBytes: number | null
}

const numberIn = (text: string | undefined): number | null =>
  text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : null

/** The memory of the control group, as Kubernetes counts it, or the sum of the processes. */
export function readProbe(output: string): Probe {
  const found = Map.groupBy(output.split('\n'), (line) => line.slice(0, line.indexOf(' ')))
  const rests = (name: string) => (found.get(name) ?? []).map((line) => line.slice(name.length + 1))
  const processes = rests('stat').map(parseStat)
  const stats = processes.filter((stat) => stat !== null)
  const used = numberIn(rests('used')[0])
  const resident = rests('statm').reduce((sum, line) => sum + (numberIn(line.split(' ')[1]) ?? 0) * pageBytes, 0)
  return {
    memoryBytes: used === null ? resident : Math.max(0, used - (numberIn(rests('cached')[0]) ?? 0)),
    cpuSeconds: stats.reduce((sum, { ticks }) => sum + ticks, 0) / ticksPerSecond,
    processes: stats.length,
    diskBytes: numberIn(rests('disk')[0]),
  }
}

const first = (processes: readonly ProcessStat[]): ProcessStat | null =>
  processes.reduce<ProcessStat | null>((a, b) => (a && Number(a.startTime) <= Number(b.startTime) ? a : b), null)

/** The first process of a pod is Kubernetes' own, which reaps others. */
const initPid = 1

/**
 * The activity of the gateway of a pod, from the output of `processProbe`; null if it has none. The processes started
 * by Kubernetes have no parent in the pod. The oldest of them is the supervisor, and its first child the gateway.
 */
export function activityIn(output: string): Activity | null {
  const lines = output.split('\n')
  const processes = lines.map(parseStat).filter((process) => process !== null)
  const supervisor = first(processes.filter(({ pid, parent }) => parent === 0 && pid !== initPid))
  const gateway = supervisor && first(processes.filter(({ parent }) => parent === supervisor.pid))
  if (!gateway) return null
  const status = lines.find((line) => line.startsWith(`/proc/${gateway.pid}/status:`))
  return activityOf(gateway.pid, processes, switchesIn(status ?? ''))
}
