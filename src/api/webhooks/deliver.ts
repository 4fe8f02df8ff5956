import type { Dispatcher } from 'undici'
import type { Db } from '#database/client.ts'
import type { Event } from '#database/schema.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type Claimed, claimDeliveries, queueEvents, type Reliability, settleDelivery } from './queue.ts'
import { sendMessage } from './send.ts'

/** Maximum tries at once. Receivers that fail take no places from the others. */
const places: Record<Reliability, number> = { reliable: 64, failing: 16 }

export interface DeliveryParts {
  db: Db
  vault: Vault
  agent: Dispatcher
  /** The event as the API shows it. */
  showEvent(event: Event): object
  log: Pick<Logger, 'warn'>
}

/**
 * Returns the task that queues new events and delivers them. A run begins tries, and does not wait for them: they end
 * within seconds, begin the next ones, and are aborted with the signal of the last run. A process that is killed repeats
 * its open tries, or another one does, when their leases end.
 */
export function createDeliveries({ db, vault, agent, showEvent, log }: DeliveryParts) {
  const open: Record<Reliability, Map<string, number>> = { reliable: new Map(), failing: new Map() }
  let signal = AbortSignal.abort()
  let isWanted = false
  let filling: Promise<void> | null = null

  async function attempt(claimed: Claimed): Promise<void> {
    const { webhookId, event, at } = claimed
    const startedAt = performance.now()
    const stopping = signal
    const secrets = [vault.unseal(claimed.sealedSecret, `webhooks/${webhookId}/sealed_secret`)]
    if (claimed.sealedPreviousSecret)
      secrets.push(vault.unseal(claimed.sealedPreviousSecret, `webhooks/${webhookId}/sealed_previous_secret`))
    const data = showEvent(event)
    const body = JSON.stringify({ type: event.type, timestamp: toMicroseconds(event.createdAt), data })
    const answer = await sendMessage(agent, { url: claimed.url, id: String(event.id), at, body, secrets }, stopping)
    if (stopping.aborted) return
    const duration = Math.round(performance.now() - startedAt)
    await settleDelivery(db, claimed, { at: toMicroseconds(at), duration_ms: duration, ...answer })
  }

  function begin(kind: Reliability, claimed: Claimed): void {
    const { webhookId, eventId } = claimed
    const counts = open[kind]
    counts.set(webhookId, (counts.get(webhookId) ?? 0) + 1)
    attempt(claimed)
      .catch((err: unknown) => log.warn({ err, webhookId, eventId }, 'a webhook delivery was left, and is repeated'))
      .finally(() => {
        const left = (counts.get(webhookId) ?? 1) - 1
        if (left > 0) counts.set(webhookId, left)
        else counts.delete(webhookId)
        void fill().catch(() => {}) // the next run says so
      })
  }

  async function claim(kind: Reliability): Promise<void> {
    const room = places[kind] - [...open[kind].values()].reduce((sum, count) => sum + count, 0)
    if (room <= 0) return
    for (const claimed of await claimDeliveries(db, kind, room, open[kind])) begin(kind, claimed)
  }

  /** Uses the free places. Calls during one lead to one more. */
  function fill(): Promise<void> {
    isWanted = true
    filling ??= (async () => {
      try {
        while (isWanted && !signal.aborted) {
          isWanted = false
          await claim('reliable')
          await claim('failing')
        }
      } finally {
        filling = null
      }
    })()
    return filling
  }

  return async (runSignal: AbortSignal): Promise<void> => {
    signal = runSignal
    let isMore = true
    while (isMore && !runSignal.aborted) {
      isMore = await queueEvents(db)
      await fill()
    }
  }
}
