import { activityOf, switchesIn } from '#sandbox/activity.ts'
import type { Activity } from '#sandbox/driver.ts'
import { ofAllProcesses, type ProcessId, procFile, readStat } from './processes.ts'

/** The activity of a gateway on this host; null when it has ended. */
export async function readActivity({ pid }: ProcessId): Promise<Activity | null> {
  const processes = await ofAllProcesses(readStat)
  return activityOf(pid, processes, switchesIn(procFile(pid, 'status')))
}
