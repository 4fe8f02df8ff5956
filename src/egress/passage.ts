import type { Socket } from 'node:net'
import { egressBytes } from '#platform/metrics.ts'
import type { Asked, EgressRecords } from './records.ts'

/** A connection to a host, from when its client has asked until it ends. */
export interface Passage {
  asked: Asked
  isToRelay: boolean
  /** Where the client has reached this process, if the relay that it asks for answers there. */
  ownServer: { address: string; port: number } | null
  /** Of the host, once they are looked up. */
  addresses: readonly string[] | null
  upstream: Socket | null
  /** Bytes that are counted already. */
  sent: number
  received: number
  end: AbortController
}

/** Counts and records the bytes that have passed since this was called last. */
export function countBytes(records: EgressRecords, passage: Passage): void {
  const { upstream, asked } = passage
  if (!upstream) return
  const [sent, received] = [upstream.bytesWritten - passage.sent, upstream.bytesRead - passage.received]
  if (sent + received === 0) return
  passage.sent += sent
  passage.received += received
  egressBytes.inc({ direction: 'sent' }, sent)
  egressBytes.inc({ direction: 'received' }, received)
  if (!passage.isToRelay) records.noteBytes(asked, { sent, received })
}
