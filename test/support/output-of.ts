import type { SandboxDriver } from '#sandbox/driver.ts'

/** The last lines of a gateway's output. */
export async function outputOf(driver: Pick<SandboxDriver, 'readLog'>, id: string, lines = 50): Promise<string> {
  const page = await driver.readLog(id, { lines }, AbortSignal.timeout(30_000))
  return [...page.lines, ...(page.rest ? [page.rest] : [])].map(({ text }) => text).join('\n')
}
