import { inject } from 'vitest'
import type { QueueBackend } from '#lifecycle/queue/queue-backend.ts'
import type { TestDatabase } from './test-database.ts'

/** Both kinds of queue, for `describe.each`. */
export const queueKinds = ['postgres', 'redis'] as const

export const hasQueue = (kind: (typeof queueKinds)[number]): boolean =>
  kind === 'postgres' || inject('redisUrl') !== null

export function queueBackend(kind: (typeof queueKinds)[number], database: TestDatabase): QueueBackend {
  if (kind === 'postgres') return { kind, connection: database.connection }
  return { kind, url: inject('redisUrl') ?? '' }
}
