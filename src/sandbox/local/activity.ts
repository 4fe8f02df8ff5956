import { readFile } from 'node:fs/promises'
import { activityOf, switchesIn } from '#sandbox/activity.ts'
import type { Activity } from '#sandbox/driver.ts'
import { allPids, type ProcessId, readStat } from './processes.ts'

/** The activity of a gateway on this host; null when it has ended. */
export async function readActivity({ pid }: ProcessId): Promise<Activity | null> {
  const [status, ...processes] = await Promise.all([
    readFile(`/proc/${pid}/status`, 'utf8').catch(() => ''),
    ...(await allPids()).map(readStat),
  ])
  const living = processes.filter((process) => process !== null)
  return activityOf(pid, living, switchesIn(status))
}
