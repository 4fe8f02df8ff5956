import { readFile } from 'node:fs/promises'
import { cpus } from 'node:os'

/** Linux counts in hundredths of a second. */
const ticksPerSecond = 100

/** The memory of a process that is in RAM, in MB. */
export async function residentMb(pid: number): Promise<number> {
  const [, kB] = /^VmRSS:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(kB) / 1024
}

/** The memory of a process in RAM that it shares with nobody, and its part of what it shares, in MB. */
export async function proportionalMb(pid: number): Promise<number> {
  const [, kB] = /^Pss:\s+(\d+) kB$/m.exec(await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')) ?? []
  return Number(kB) / 1024
}

/** The CPU time that a process has used, in seconds; with that of its own processes that have ended, if asked for. */
export async function cpuSeconds(pid: number, { withEnded = false } = {}): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8')
  const fields = text
    .slice(text.lastIndexOf(')') + 2)
    .split(' ')
    .map(Number)
  const counted = fields.slice(11, withEnded ? 15 : 13)
  return counted.reduce((sum, ticks) => sum + ticks, 0) / ticksPerSecond
}

/** The CPU time that this machine has used so far, in seconds of one core. */
function busySeconds(): number {
  const ms = cpus().map(({ times: { user, nice, sys, irq } }) => user + nice + sys + irq)
  return ms.reduce((sum, one) => sum + one, 0) / 1000
}

/** How many cores these processes, and the whole machine, kept busy while something was done. */
export async function coresBusy(pids: number[], act: () => Promise<unknown>) {
  const own = async () => (await Promise.all(pids.map((pid) => cpuSeconds(pid)))).reduce((sum, one) => sum + one, 0)
  const before = { at: performance.now(), own: await own(), all: busySeconds() }
  await act()
  const seconds = (performance.now() - before.at) / 1000
  return { own: ((await own()) - before.own) / seconds, all: (busySeconds() - before.all) / seconds }
}
