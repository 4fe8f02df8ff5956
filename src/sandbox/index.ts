import { type DockerDriverOptions, openDockerDriver } from './docker/driver.ts'
import type { SandboxDriver } from './driver.ts'
import { type LocalDriver, type LocalDriverOptions, openLocalDriver } from './local/driver.ts'

/** What only some drivers can do. */
export type OpenedDriver = SandboxDriver & Partial<Pick<LocalDriver, 'stopAll' | 'strays'>>

export type DriverOptions =
  | { name: 'local'; options: LocalDriverOptions }
  | { name: 'docker'; options: DockerDriverOptions }

/** Opens the driver of that name. It touches nothing before it is asked to. */
export const openDriver = (driver: DriverOptions): OpenedDriver =>
  driver.name === 'local' ? openLocalDriver(driver.options) : openDockerDriver(driver.options)
