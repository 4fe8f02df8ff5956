import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '#database/client.ts'
import type { EgressVerdict } from '#database/egress-schema.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { egressUnrecorded } from '#platform/metrics.ts'
import type { BlockReason, Destination } from './policy.ts'

/** How long connections wait for others of the same host, in ms. */
const gatherMs = 1000
/** Maximum hosts per statement. */
const batchSize = 500
/** Maximum waiting hosts: of one instance, so that none crowds out the others, and of all. */
const maxWaitingOfInstance = 100
const maxWaiting = 10_000
/** Maximum stored hosts of one instance, the last requested ones. */
export const keptHosts = 200

/** A host requested by an agent. */
export interface Asked extends Destination {
  instanceId: string
  organizationId: string
}

interface Waiting extends Asked {
  /** Null if only bytes are added. */
  verdict: EgressVerdict | null
  reason: BlockReason | null
  connections: number
  sentBytes: number
  receivedBytes: number
}

/**
 * Records the hosts that agents request. One statement writes all requests of a second, a row for each host of an
 * instance; an agent that requests new hosts all the time costs no more. Unwritten records are lost when the process is
 * killed.
 */
export interface EgressRecords {
  /** A connection was permitted or refused. */
  record(asked: Asked, verdict: EgressVerdict, reason?: BlockReason): void
  /** Adds bytes to a connection that was recorded. */
  addBytes(asked: Asked, bytes: { sent: number; received: number }): void
  /** Writes the waiting records, and gives up after `timeoutMs`. */
  close(timeoutMs: number): Promise<void>
}

const columns = 'instance_id, host, port, organization_id, verdict, reason, connections, sent_bytes, received_bytes'
// Bytes of a host without a row are dropped. In the order of the key: relays of two processes write too.
const writeQuery = `
  WITH x AS (
    SELECT * FROM jsonb_to_recordset($1::jsonb) AS x (instance_id uuid, host text, port int, organization_id uuid,
      verdict text, reason text, connections bigint, sent_bytes bigint, received_bytes bigint)
  ), noted AS (
    INSERT INTO egress_hosts (${columns})
    SELECT ${columns} FROM x WHERE verdict IS NOT NULL ORDER BY instance_id, host, port
    ON CONFLICT (instance_id, host, port) DO UPDATE SET verdict = excluded.verdict, reason = excluded.reason,
      connections = egress_hosts.connections + excluded.connections,
      sent_bytes = egress_hosts.sent_bytes + excluded.sent_bytes,
      received_bytes = egress_hosts.received_bytes + excluded.received_bytes, last_seen_at = now()
  )
  UPDATE egress_hosts e SET sent_bytes = e.sent_bytes + x.sent_bytes, received_bytes = e.received_bytes + x.received_bytes,
    last_seen_at = now()
  FROM x WHERE x.verdict IS NULL AND e.instance_id = x.instance_id AND e.host = x.host AND e.port = x.port`
const trimQuery = `
  DELETE FROM egress_hosts e USING unnest($1::uuid[]) AS touched (id)
  WHERE e.instance_id = touched.id AND (e.host, e.port) NOT IN (
    SELECT k.host, k.port FROM egress_hosts k WHERE k.instance_id = touched.id
    ORDER BY k.last_seen_at DESC, k.host, k.port LIMIT ${keptHosts})`

const rowOf = ({ instanceId, organizationId, host, port, verdict, reason, ...counts }: Waiting) => ({
  instance_id: instanceId,
  organization_id: organizationId,
  host,
  port,
  verdict,
  reason,
  connections: counts.connections,
  sent_bytes: counts.sentBytes,
  received_bytes: counts.receivedBytes,
})

export function createEgressRecords(db: Db, log: Logger): EgressRecords {
  const waiting = new Map<string, Waiting>()
  const countOf = new Map<string, number>()
  const outage = logFirstAndRecovery(
    log,
    'the hosts that agents ask for cannot be written',
    'the hosts that agents ask for are written',
  )
  let writing: Promise<void> | null = null
  const closing = new AbortController()
  let isGivenUp = false

  function take(): Waiting[] {
    const batch = [...waiting.entries()].slice(0, batchSize)
    for (const [key, { instanceId }] of batch) {
      waiting.delete(key)
      const count = (countOf.get(instanceId) ?? 0) - 1
      if (count > 0) countOf.set(instanceId, count)
      else countOf.delete(instanceId)
    }
    return batch.map(([, entry]) => entry)
  }

  async function write(): Promise<void> {
    while (waiting.size > 0 && !isGivenUp) {
      await sleep(gatherMs, undefined, { signal: closing.signal, ref: false }).catch(() => {})
      const batch = take()
      try {
        await db.$client.query({
          name: 'write_egress_hosts',
          text: writeQuery,
          values: [JSON.stringify(batch.map(rowOf))],
        })
        const touched = new Set(batch.flatMap(({ verdict, instanceId }) => (verdict === null ? [] : [instanceId])))
        if (touched.size > 0)
          await db.$client.query({ name: 'trim_egress_hosts', text: trimQuery, values: [[...touched]] })
        outage.recovered()
      } catch (error) {
        egressUnrecorded.inc(batch.length)
        outage.failed(error)
      }
    }
  }

  /** The waiting entry of a host; null when too many wait. */
  function entryOf({ instanceId, organizationId, host, port }: Asked): Waiting | null {
    const key = `${instanceId} ${host} ${port}`
    const known = waiting.get(key)
    if (known) return known
    const count = countOf.get(instanceId) ?? 0
    if (isGivenUp || count >= maxWaitingOfInstance || waiting.size >= maxWaiting) return null
    const counts = { connections: 0, sentBytes: 0, receivedBytes: 0 }
    const entry = { instanceId, organizationId, host, port, verdict: null, reason: null, ...counts }
    waiting.set(key, entry)
    countOf.set(instanceId, count + 1)
    writing ??= write().finally(() => {
      writing = null
    })
    return entry
  }

  return {
    record(asked, verdict, reason) {
      const entry = entryOf(asked)
      if (!entry) return egressUnrecorded.inc()
      entry.verdict = verdict
      entry.reason = reason ?? null
      entry.connections += 1
    },
    addBytes(asked, { sent, received }) {
      const entry = entryOf(asked)
      if (!entry) return
      entry.sentBytes += sent
      entry.receivedBytes += received
    },
    async close(timeoutMs) {
      closing.abort()
      await Promise.race([writing, sleep(timeoutMs, undefined, { ref: false })])
      isGivenUp = true
    },
  }
}
