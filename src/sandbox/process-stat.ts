/** The kernel's unit of process times, on every architecture that Node.js has. */
export const ticksPerSecond = 100

/** A process, as in /proc/<pid>/stat. */
export interface ProcessStat {
  pid: number
  /** A letter of proc(5). */
  state: string
  parent: number
  session: number
  terminal: string
  /** The processor time of the process and of its children that have ended, in the kernel's ticks. */
  ticks: number
  threads: number
  /** In the kernel's ticks since boot. */
  startTime: string
}

/** Parses /proc/<pid>/stat; returns null for any other text. */
export function parseStat(stat: string): ProcessStat | null {
  const pid = Number.parseInt(stat, 10)
  // The program's name, in parentheses, may contain any characters, including parentheses.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const [state, parent, , session, terminal] = fields
  const [threads, startTime] = [fields[17], fields[19]]
  if (Number.isNaN(pid) || !state || !terminal || !startTime) return null
  const times = fields.slice(11, 15).map(Number)
  return {
    pid,
    state,
    parent: Number(parent),
    session: Number(session),
    terminal,
    ticks: times.reduce((sum, time) => sum + time, 0),
    threads: Number(threads),
    startTime,
  }
}
