import { Webhook } from 'standardwebhooks'
import { type Dispatcher, request } from 'undici'
import { HostRefused } from '#egress/checked-agent.ts'

/** The longest that a receiver may take to answer. */
const answerTimeoutMs = 15_000
/** Bytes of an answer that are read, so that its connection can serve the next message. */
const answerBytes = 64 * 1024

/** A signed message. */
export interface Message {
  url: string
  /** Equal in all tries, so that a receiver can leave out what it has. */
  id: string
  /** When it is sent: receivers refuse old ones. */
  at: Date
  body: string
  /** In the form of `newSecret`. Each signs. */
  secrets: readonly string[]
}

/** The status of the answer, or null and the fault in words for the owner of the receiver. */
export type Answer = { status: number; error: string | null } | { status: null; error: string }

const words: Record<string, string> = {
  ECONNREFUSED: 'The receiver refused the connection.',
  ECONNRESET: 'The receiver closed the connection.',
  UND_ERR_SOCKET: 'The receiver closed the connection.',
  ENOTFOUND: 'The name of the receiver has no address.',
  ENODATA: 'The name of the receiver has no address.',
  EHOSTUNREACH: 'The receiver could not be reached.',
  ENETUNREACH: 'The receiver could not be reached.',
}

function faultOf(error: unknown): string {
  const { name, code = '' } = error as NodeJS.ErrnoException
  if (error instanceof HostRefused) return error.message
  if (name === 'TimeoutError') return `The receiver did not answer within ${answerTimeoutMs / 1000} s.`
  return words[code] ?? `The message could not be sent: ${code || name}.`
}

function errorOf(status: number): string | null {
  if (status >= 200 && status < 300) return null
  if (status >= 300 && status < 400) return `The receiver answered ${status}. Redirects are not followed.`
  return `The receiver answered ${status}.`
}

/**
 * Sends a message by Standard Webhooks 1.0.0 (https://www.standardwebhooks.com): an HMAC of its id, its time and its
 * body. A status of 2xx is a success, whatever comes after it. Never throws; once `signal` is aborted the answer means
 * nothing.
 */
export async function sendMessage(agent: Dispatcher, message: Message, signal: AbortSignal): Promise<Answer> {
  const { url, id, at, body, secrets } = message
  const limit = AbortSignal.any([signal, AbortSignal.timeout(answerTimeoutMs)])
  try {
    const answer = await request(url, {
      dispatcher: agent,
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'user-agent': 'Chowder-Webhooks',
        'webhook-id': id,
        'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
        'webhook-signature': secrets.map((secret) => new Webhook(secret).sign(id, at, body)).join(' '),
      },
      body,
      signal: limit,
    })
    answer.body.dump({ limit: answerBytes, signal: limit }).catch(() => {})
    return { status: answer.statusCode, error: errorOf(answer.statusCode) }
  } catch (error) {
    return { status: null, error: faultOf(error) }
  }
}
