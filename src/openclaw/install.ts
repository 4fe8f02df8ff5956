import type { Progress } from '../sandbox/driver.ts'

export interface InstallOptions {
  dataDir: string
  release: string
  progress: Progress
  signal: AbortSignal
}

export async function installRelease(_options: InstallOptions): Promise<string> {
  throw new Error('not yet')
}
