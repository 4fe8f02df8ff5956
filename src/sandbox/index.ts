import type { DockerDriverOptions } from './docker/driver.ts'
import type { SandboxDriver } from './driver.ts'
import type { LocalDriver, LocalDriverOptions } from './local/driver.ts'

/** What only some drivers can do. */
export type OpenedDriver = SandboxDriver & Partial<Pick<LocalDriver, 'stopAll' | 'strays'>>

export type DriverOptions =
  | { name: 'local'; options: LocalDriverOptions }
  | { name: 'docker'; options: DockerDriverOptions }

/** Opens the driver of that name, and loads no other. It touches nothing before it is asked to. */
export async function openDriver(driver: DriverOptions): Promise<OpenedDriver> {
  if (driver.name === 'local') return (await import('./local/driver.ts')).openLocalDriver(driver.options)
  return (await import('./docker/driver.ts')).openDockerDriver(driver.options)
}
