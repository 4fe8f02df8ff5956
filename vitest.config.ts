import { defineConfig } from 'vitest/config'

const minute = 60_000
const withAgents = ['test/support/release.ts', 'test/support/servers.ts', 'test/support/agent-sandboxes.ts']

const project = (name: string, options: { testTimeout: number; globalSetup?: string[] }) => ({
  test: { name, include: [`test/${name}/**/*.test.ts`], hookTimeout: 10 * minute, ...options },
})

export default defineConfig({
  test: {
    fileParallelism: true,
    maxWorkers: 2,
    projects: [
      project('unit', { testTimeout: 30_000 }),
      project('integration', { testTimeout: minute, globalSetup: ['test/support/servers.ts'] }),
      project('e2e', {
        testTimeout: 6 * minute,
        globalSetup: withAgents,
      }),
      project('docker', { testTimeout: 6 * minute }),
      project('chaos', {
        testTimeout: 10 * minute,
        globalSetup: withAgents,
      }),
    ],
  },
})
