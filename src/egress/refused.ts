import { egressTexts } from '#errors/egress-texts.ts'
import { egressConnections } from '#platform/metrics.ts'
import { hostAndPort } from './hosts.ts'
import type { BlockReason } from './policy.ts'
import type { Asked, EgressRecords } from './records.ts'

/** The client has ended its connection: no answer is needed. */
export const clientLeft = new Error('the client left')

/** The connection is refused, or could not be made. The message is for the agent. */
export class EgressRefused extends Error {
  readonly status: number
  /** The error type of RFC 9209 for the header Proxy-Status. */
  readonly word: string

  constructor(status: number, word: string, message: string) {
    super(message)
    this.status = status
    this.word = word
  }
}

const words: Record<BlockReason, string> = {
  egress_none: 'http_request_denied',
  not_listed: 'http_request_denied',
  port: 'http_request_denied',
  mail_port: 'http_request_denied',
  private_address: 'destination_ip_prohibited',
}

/** Counts and records a connection that a policy forbids, and returns the refusal for its client. */
export function block(records: EgressRecords, asked: Asked, reason: BlockReason): EgressRefused {
  records.record(asked, 'blocked', reason)
  egressConnections.inc({ verdict: 'blocked', reason })
  const place = hostAndPort(asked.host, asked.port)
  return new EgressRefused(403, words[reason], egressTexts.blocked[reason]({ place, instanceId: asked.instanceId }))
}

/** The headers of an answer whose body is the message and a line break. */
export const refusalHeaders = ({ status, word, message }: EgressRefused) => ({
  'content-type': 'text/plain; charset=utf-8',
  'content-length': String(Buffer.byteLength(message) + 1),
  connection: 'close',
  'proxy-status': `chowder; error=${word}`,
  ...(status === 407 && { 'proxy-authenticate': 'Basic realm="egress"' }),
})
