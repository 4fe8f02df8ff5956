import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import { Webhook } from 'standardwebhooks'
import type { HookKind } from '#database/hook-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** Slack asks for this limit of repeated requests. */
const slackToleranceSeconds = 300

/** A call whose signature is good. */
export interface VerifiedCall {
  /** The same when the sender repeats the call. */
  deliveryId: string
  /** The type of the event, as the sender names it; empty without one. */
  event: string
}

export interface ReceivedCall {
  headers: IncomingHttpHeaders
  body: Buffer
  /** The body as JSON. */
  json: Record<string, unknown>
  /** In ms since 1970, by the clock of the database. */
  now: number
}

const header = (headers: IncomingHttpHeaders, name: string): string => String(headers[name] ?? '')

function isHmac(secret: string, prefix: string, signed: string | Buffer, given: string): boolean {
  const expected = Buffer.from(prefix + createHmac('sha256', secret).update(signed).digest('hex'))
  const actual = Buffer.from(given)
  return actual.length === expected.length && timingSafeEqual(actual, expected)
}

const textOr = (value: unknown, otherwise: string) => (typeof value === 'string' && value !== '' ? value : otherwise)

/**
 * Each verifies a call by the rules of its sender, and returns null for a bad signature:
 * https://www.standardwebhooks.com,
 * https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries,
 * https://docs.slack.dev/authentication/verifying-requests-from-slack
 */
const verifiers: Record<HookKind, (secret: string, call: ReceivedCall) => VerifiedCall | null> = {
  standard(secret, { headers, body, json }) {
    const names = ['webhook-id', 'webhook-timestamp', 'webhook-signature'] as const
    const given = Object.fromEntries(names.map((name) => [name, header(headers, name)]))
    try {
      new Webhook(secret).verify(body, given)
    } catch {
      return null
    }
    return { deliveryId: header(headers, 'webhook-id'), event: textOr(json.type, '') }
  },
  github(secret, { headers, body }) {
    if (!isHmac(secret, 'sha256=', body, header(headers, 'x-hub-signature-256'))) return null
    return { deliveryId: header(headers, 'x-github-delivery'), event: header(headers, 'x-github-event') }
  },
  slack(secret, { headers, body, json, now }) {
    const timestamp = header(headers, 'x-slack-request-timestamp')
    const isRecent = Math.abs(now / 1000 - Number(timestamp)) <= slackToleranceSeconds
    const signed = Buffer.concat([Buffer.from(`v0:${timestamp}:`), body])
    if (!isRecent || !isHmac(secret, 'v0=', signed, header(headers, 'x-slack-signature'))) return null
    const inner = (typeof json.event === 'object' && json.event !== null ? json.event : json) as { type?: unknown }
    return { deliveryId: textOr(json.event_id, ''), event: textOr(inner.type, '') }
  },
}

/** Verifies the signature of a call. Throws AppError `invalid_signature`. */
export function verifyCall(kind: HookKind, secret: string, call: ReceivedCall): VerifiedCall {
  const verified = verifiers[kind](secret, call)
  if (!verified) throw new AppError('invalid_signature', texts.badHookSignature[kind])
  if (verified.deliveryId !== '') return verified
  // Without an id of its sender, a call with the same body is the same call.
  return { ...verified, deliveryId: createHash('sha256').update(call.body).digest('hex') }
}
