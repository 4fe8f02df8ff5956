import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { createHeartbeat } from '#composition/heartbeat.ts'
import { defaultMaintenance, maintenanceTasks } from '#composition/maintenance.ts'
import { createPlatformOutage } from '#lifecycle/attempt/platform-outage.ts'
import { createDriftDetection } from '#lifecycle/watch/drift.ts'
import { regionTasks } from '#lifecycle/watch/region-tasks.ts'
import { defaultIntervals, sweepTask } from '#lifecycle/worker.ts'
import type { PeriodicTask } from '#platform/periodic.ts'

/** Nothing of it is used before a task runs. */
const unused = {} as never

const seconds = ({ everyMs }: PeriodicTask) => (typeof everyMs === 'number' ? everyMs : everyMs()) / 1000

test('src/lifecycle/README.md shows every periodic task with its pause, and no other', () => {
  const tasks = [
    createHeartbeat(unused, unused, unused).task,
    sweepTask(unused, defaultIntervals.sweepEveryMs),
    ...regionTasks(
      { platformOutage: createPlatformOutage(unused, unused) } as never,
      defaultIntervals.driftEveryMs,
      createDriftDetection(unused, unused),
      unused,
    ),
    ...maintenanceTasks({ db: unused, vault: unused, queue: unused, billing: unused, log: unused }, defaultMaintenance),
  ]
  const text = readFileSync(new URL('../../../src/lifecycle/README.md', import.meta.url), 'utf8')
  const rows = [...text.matchAll(/^\| `(\w+)` \| ([\d.]+) s \| [^|]+ \|$/gm)]
  expect(rows.map(([, name, every]) => `${name}: ${every} s`)).toEqual(
    tasks.map((task) => `${task.name}: ${seconds(task)} s`),
  )
})
