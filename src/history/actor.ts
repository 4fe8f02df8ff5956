import { AsyncLocalStorage } from 'node:async_hooks'

/** On whose behalf something is done: what the history names for it. */
export interface Origin {
  actor: { type: 'key' | 'operator' | 'stripe' | 'worker'; id?: string }
  requestId?: string
  /** What was asked for, such as `instance.stop`. */
  type?: string
  /** What that is about: a channel, a skill, a path. */
  subject?: string
  /** Set once the history has it: what is asked for in one request is recorded at least once. */
  isRecorded?: boolean
}

const origins = new AsyncLocalStorage<Origin>()

/** Runs `act`, and all that it begins, on behalf of somebody. */
export const runAs = <T>(origin: Origin, act: () => T): T => origins.run(origin, act)

/** On whose behalf this runs; a worker's, if nobody said otherwise. */
export const originNow = (): Origin => origins.getStore() ?? { actor: { type: 'worker' } }
