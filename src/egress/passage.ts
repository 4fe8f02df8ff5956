import type { Socket } from 'node:net'
import { egressTexts } from '#errors/egress-texts.ts'
import { egressBytes } from '#platform/metrics.ts'
import { startRechecks } from '#platform/throttle.ts'
import type { FindEgressGrant } from './grants.ts'
import { createDecide } from './policy.ts'
import type { Asked, EgressRecords } from './records.ts'
import { block, EgressRefused } from './refused.ts'

/** A connection to a host, from the client's request to its end. */
export interface Passage {
  asked: Asked
  isToRelay: boolean
  /** The local address of the client's connection, if the requested relay answers there. */
  ownServer: { address: string; port: number } | null
  /** The addresses of the host, once they are resolved. */
  addresses: readonly string[] | null
  upstream: Socket | null
  /** Bytes that are already counted. */
  sent: number
  received: number
  end: AbortController
}

/** Counts and records the bytes since the last call. */
export function countBytes(records: EgressRecords, passage: Passage): void {
  const { upstream, asked } = passage
  if (!upstream) return
  const [sent, received] = [upstream.bytesWritten - passage.sent, upstream.bytesRead - passage.received]
  if (sent + received === 0) return
  passage.sent += sent
  passage.received += received
  egressBytes.inc({ direction: 'sent' }, sent)
  egressBytes.inc({ direction: 'received' }, received)
  if (!passage.isToRelay) records.addBytes(asked, { sent, received })
}

interface RecheckParts {
  findGrant: FindEgressGrant
  records: EgressRecords
}

/**
 * Counts the bytes of open connections every half second, and ends those that are no longer permitted. While the
 * database is unreachable, they stay permitted. Returns a function that stops it.
 */
export function startRecheck(open: ReadonlySet<Passage>, { findGrant, records }: RecheckParts): () => void {
  async function recheck(passage: Passage): Promise<void> {
    countBytes(records, passage)
    const { asked, addresses, isToRelay, end } = passage
    const grant = await findGrant(asked.instanceId).catch(() => undefined)
    if (grant === undefined || !open.has(passage)) return
    if (grant === null) return end.abort(new EgressRefused(403, 'http_request_denied', egressTexts.stopped))
    if (isToRelay) return
    const decision = createDecide(grant.operatorHosts)(grant.rules, asked, addresses)
    if (!decision.isAllowed) end.abort(block(records, asked, decision.reason))
  }

  return startRechecks(() => Promise.all([...open].map(recheck)))
}
