import { AppError } from '#errors/app-error.ts'
import { isObject } from '#openclaw/json.ts'

const maxAnswerBytes = 2 * 1024 * 1024
const shownCharacters = 200
const defaultRetrySeconds = 30
const maxRetrySeconds = 3600

export interface RegistryAnswer {
  status: number
  text: string
}

const unreachable = (problem: string, cause?: unknown) =>
  new AppError('skill_registry_unreachable', `The skill registry ${problem}. Try again later.`, { cause })

async function readBounded(body: ReadableStream<Uint8Array> | null): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of body ?? []) {
    bytes += chunk.length
    if (bytes > maxAnswerBytes) throw unreachable('sent an answer that is too large')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

function retrySeconds(header: string | null): number {
  const seconds = /^\d{1,6}$/.test(header ?? '') ? Number(header) : defaultRetrySeconds
  return Math.min(Math.max(seconds, 1), maxRetrySeconds)
}

/** Sends a request, with the limits and errors of ClawHub. */
export async function send(url: URL, init: RequestInit): Promise<RegistryAnswer> {
  try {
    const response = await fetch(url, { ...init, redirect: 'manual' })
    const text = await readBounded(response.body)
    if (response.status === 429) {
      throw new AppError('unavailable', 'The skill registry asks to wait before the next request.', {
        retryAfterSeconds: retrySeconds(response.headers.get('retry-after')),
      })
    }
    if (response.status < 200 || response.status >= 500 || (response.status >= 300 && response.status < 400)) {
      throw unreachable(`answered with status ${response.status}`)
    }
    return { status: response.status, text }
  } catch (cause) {
    if (cause instanceof AppError) throw cause
    throw unreachable(
      cause instanceof Error && cause.name === 'TimeoutError' ? 'did not answer in time' : 'does not answer',
      cause,
    )
  }
}

export const malformed = () => unreachable('sent a malformed answer')

/** The JSON object in an answer. Throws `malformed` for any other answer. */
export function parse({ status, text }: RegistryAnswer): Record<string, unknown> {
  if (status !== 200) throw malformed()
  try {
    const body: unknown = JSON.parse(text)
    if (isObject(body)) return body
  } catch {} // malformed as well
  throw malformed()
}

/** ClawHub reports a moderator's refusal as one of these statuses, with a message as the body. */
export const isWithheld = ({ status }: RegistryAnswer) => status === 403 || status === 410 || status === 423

/** Makes a text of the registry safe to show: one line, limited in length. */
export const sentence = (text: string) =>
  text
    .replace(/\p{Cc}+/gu, ' ')
    .trim()
    .slice(0, shownCharacters)
