import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { installRelease } from '../../src/openclaw/install.ts'
import { defaultRelease } from '../../src/openclaw/releases.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The folder `releases` of a data folder in which the default release is installed. */
    releases: string
  }
}

/**
 * A data folder where OpenClaw is installed once, however many tests and runs need it. As root outside of the clone:
 * agents run as other users, who may not be able to enter it.
 */
const dataDir =
  process.getuid?.() === 0
    ? '/var/cache/chowder-test'
    : join(import.meta.dirname, '../../node_modules/.cache/chowder-test')

const installMs = 10 * 60_000

/** The folder of the installed default release; the first call on a machine takes as long as the download. */
export const preparedRelease = (): Promise<string> =>
  installRelease({
    dataDir,
    release: defaultRelease,
    progress: (line) => console.log(line),
    signal: AbortSignal.timeout(installMs),
  })

/** As a global setup of Vitest: no test's own time is spent on the download. */
export default async function setup(project: TestProject): Promise<void> {
  await preparedRelease()
  project.provide('releases', join(dataDir, 'releases'))
}
