import type { Logger } from '#platform/log.ts'
import type { Config } from '#settings/config.ts'
import type { Drain } from './drain.ts'

export const roles = ['all', 'api', 'worker', 'relay', 'migrate'] as const
export type Role = (typeof roles)[number]

/** The start of a process: its role and settings, and the drain that closes what it opens. */
export interface Startup {
  role: Role
  config: Config
  /** The absolute path of the data folder. */
  dataDir: string
  log: Logger
  drain: Drain
}
