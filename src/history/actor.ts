import { AsyncLocalStorage } from 'node:async_hooks'
import type { ActorType } from '#database/schema.ts'
import type { EventType } from './event-types.ts'

/** Who acts, and for which request: the history names both in each event. */
export interface Origin {
  readonly actor: { readonly type: ActorType; readonly id?: string }
  readonly requestId?: string
  /** The type of the events, such as `instance.stop`, unless the code that records one gives another. */
  readonly type?: EventType
  /** The object of the request beside the instance: a channel, a skill, a path. */
  readonly subject?: string
}

const worker: Origin = { actor: { type: 'worker' } }

const running = new AsyncLocalStorage<{ readonly origin: Origin; hasEvent: boolean }>()

/**
 * Runs `act` for an origin. All that `act` begins runs for it too, and names it when it writes history: through
 * `recordEvent`, or through `changedBy` and the trigger on the table `instances`.
 */
export const runAs = <T>(origin: Origin, act: () => T): T => running.run({ origin, hasEvent: false }, act)

/** The origin that the caller runs for; a worker outside of `runAs`. */
export const currentOrigin = (): Origin => running.getStore()?.origin ?? worker

/** Whether an event was written, or handed to the trigger, since `runAs` began. */
export const hasEvent = (): boolean => running.getStore()?.hasEvent ?? false

/** Called by all that writes events. */
export function noteEvent(): void {
  const store = running.getStore()
  if (store) store.hasEvent = true
}
