import { availableParallelism } from 'node:os'
import { defineConfig } from 'vitest/config'
import { BaseSequencer, type TestSpecification } from 'vitest/node'

const minute = 60_000
const runFolder = 'test/support/run-folder.ts'
const servers = 'test/support/servers.ts'
const agentSandboxes = 'test/support/agent-sandboxes.ts'

/** Most tests wait for most of their time: more of them run than there are processors. */
const waiting = Math.max(6, availableParallelism())

/** A worker loads the product once for all its files: loading it anew for each takes a third of their processor time. */
const isolate = false

/** These take longest and mostly wait: the others run beside them. */
const longest = [
  'journey/journey',
  'integration/lifecycle/lifecycle',
  'integration/sandbox/sandbox-local',
  'integration/sandbox/sandbox-kubernetes',
  'e2e/channels',
  'chaos/step-kills',
  'chaos/platform-faults',
  'chaos/database',
]

/**
 * Another process on the machine can delay any test: one that only exceeds a limit of time or memory runs once more, and
 * the report says `retry x1`. Other failures are never repeated: `toBeLessThan` is for such limits alone, and what must
 * happen at all is waited for at least 10 s.
 */
const retry = { count: 1, condition: /to be less than \d|waited \d{1,4} ms in vain/ }

class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const group = ({ project }: TestSpecification) => project.config.sequence.groupOrder
    const place = ({ moduleId }: TestSpecification) =>
      Number(!longest.some((name) => moduleId.endsWith(`/test/${name}.test.ts`)))
    return (await super.sort(files)).sort((a, b) => group(a) - group(b) || place(a) - place(b))
  }
}

interface Options {
  testTimeout: number
  maxWorkers: number
  globalSetup?: string[]
  isolate?: boolean
}

/** The projects of a group run at the same time, and the groups one after another. */
const project = (name: string, group: number, { globalSetup = [], ...options }: Options) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    hookTimeout: 10 * minute,
    retry,
    sequence: { groupOrder: group },
    globalSetup: [runFolder, ...globalSetup],
    ...options,
  },
})

export default defineConfig({
  test: {
    sequence: { sequencer: LongestFirst },
    tags: [{ name: 'long', description: 'Repeats at length what a shorter test shows: npm run test:all' }],
    projects: [
      project('unit', 0, { testTimeout: 30_000, maxWorkers: waiting, isolate }),
      project('integration', 0, { testTimeout: minute, maxWorkers: waiting, globalSetup: [servers], isolate }),
      project('journey', 0, { testTimeout: 6 * minute, maxWorkers: waiting, globalSetup: [agentSandboxes] }),
      project('e2e', 1, { testTimeout: 6 * minute, maxWorkers: 2, globalSetup: [servers, agentSandboxes] }),
      // Alone: an attack takes the whole machine.
      project('attacks', 2, { testTimeout: 6 * minute, maxWorkers: 1, globalSetup: [servers, agentSandboxes] }),
      project('docker', 3, { testTimeout: 6 * minute, maxWorkers: 1 }),
      project('kubernetes', 3, { testTimeout: 6 * minute, maxWorkers: 1 }),
      project('chaos', 4, { testTimeout: 10 * minute, maxWorkers: 3, globalSetup: [servers, agentSandboxes] }),
    ],
  },
})
