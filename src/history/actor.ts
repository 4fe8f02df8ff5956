import { AsyncLocalStorage } from 'node:async_hooks'
import type { ActorType } from '#database/schema.ts'
import type { EventType } from './event-types.ts'

/** The actor and the request: the history names both in each event. */
export interface Origin {
  readonly actor: { readonly type: ActorType; readonly id?: string }
  readonly requestId?: string
  /** The type of the events, such as `instance.stop`, unless the recording code sets another. */
  readonly type?: EventType
  /** The object of the request besides the instance: a channel, a skill, a path. */
  readonly subject?: string
}

const worker: Origin = { actor: { type: 'worker' } }

const running = new AsyncLocalStorage<{ readonly origin: Origin; hasEvent: boolean }>()

/**
 * Runs `act` for an origin, which also applies to all work that `act` begins: `recordEvent`, and `changedBy` with the
 * trigger on the table `instances`, write it into the history.
 */
export const runAs = <T>(origin: Origin, act: () => T): T => running.run({ origin, hasEvent: false }, act)

/** The current origin; a worker outside of `runAs`. */
export const currentOrigin = (): Origin => running.getStore()?.origin ?? worker

/** Whether an event was written, or handed to the trigger, since `runAs` began. */
export const hasEvent = (): boolean => running.getStore()?.hasEvent ?? false

/** Called by all code that writes events. */
export function markEvent(): void {
  const store = running.getStore()
  if (store) store.hasEvent = true
}
