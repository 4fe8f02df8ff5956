import { AppError } from '../platform/errors.ts'
import {
  EventCutter,
  leadingName,
  readEvent,
  replaceData,
  type ServerSentEvent,
  writeEvent,
} from './server-sent-events.ts'
import { turnTexts } from './turn-texts.ts'

const maxEventBytes = 8 * 1024 * 1024
/** Enough of an event to hold its `event` line. */
const headBytes = 256

const terminalEvents = new Set(['response.completed', 'response.incomplete', 'response.failed'])
/** The only events that carry the whole response, and in it the model. */
const responseEvents = new Set([...terminalEvents, 'response.created', 'response.in_progress'])

interface RelayOptions {
  /** The model that the caller asked for: the gateway only knows its own name for it. */
  model: string
  onChunk(): void
  /** Called with the response that the terminal event carries. */
  onOutcome(response: Record<string, unknown>): void
  /** Why reading the stream failed. For what is not an AppError the stream just ends: nobody is left to be told. */
  explain(cause: unknown): Error
  /** Called with what the error event tells. */
  onBroken(failure: AppError): void
}

type ResponseEvent = { type?: unknown; response?: Record<string, unknown> }

function parse(data: string): ResponseEvent | null {
  try {
    const event = JSON.parse(data)
    return typeof event === 'object' ? event : null
  } catch {
    return null
  }
}

/** Which event it is: its name, or, as its readers do when it has none, the type in its data. */
function typeOf({ name, data }: ServerSentEvent): string | null {
  if (name !== null || data === null) return name
  const type = parse(data)?.type
  return typeof type === 'string' ? type : null
}

const broken = (text: string) => new AppError('gateway_unreachable', text, { doNotRetry: true })

function withModel(type: string, bytes: Buffer, event: ServerSentEvent, options: RelayOptions): Buffer {
  const parsed = parse(event.data ?? '')
  if (typeof parsed?.response !== 'object' || parsed.response === null) throw broken(turnTexts.unreadable)
  if (terminalEvents.has(type)) options.onOutcome(parsed.response)
  const { model } = options
  return replaceData(bytes, event, JSON.stringify({ ...parsed, response: { ...parsed.response, model } }))
}

function errorEvent(failure: AppError, sequenceNumber: number): Buffer {
  const error = { type: 'server_error', code: failure.kind, message: failure.message, param: null }
  return writeEvent(['event: error'], JSON.stringify({ type: 'error', sequence_number: sequenceNumber, error }))
}

/**
 * Passes a gateway's stream of events on: the events that carry the model with the caller's word for it, all others
 * byte for byte, each as soon as it is whole. A stream that ends, breaks or is ended without a terminal event gets
 * `event: error` as its last one, and no `[DONE]`. Never throws. Holds at most one event of 8 MiB.
 */
export async function* relayEvents(body: AsyncIterable<Buffer>, options: RelayOptions): AsyncGenerator<Buffer> {
  const cutter = new EventCutter()
  let events = 0
  let isTerminated = false
  let isPassing = false // in the middle of an event too large to hold

  const relay = (bytes: Buffer): Buffer | null => {
    if (isPassing) {
      isPassing = false
      return bytes
    }
    const name = leadingName(bytes)
    if (name !== null && !responseEvents.has(name)) {
      events++
      return bytes
    }
    const event = readEvent(bytes)
    if (event.data === null) return bytes
    // A client takes it for a clean end.
    if (event.data === '[DONE]' && !isTerminated) return null
    events++
    const type = typeOf(event)
    if (type === null || !responseEvents.has(type)) return bytes
    const changed = withModel(type, bytes, event, options)
    isTerminated ||= terminalEvents.has(type)
    return changed
  }

  const relayHeld = (): Buffer | null => {
    if (!isPassing && cutter.heldBytes <= maxEventBytes) return null
    if (!isPassing && responseEvents.has(leadingName(cutter.peek(headBytes)) ?? '')) throw broken(turnTexts.tooLarge)
    isPassing = true
    return cutter.release()
  }

  let failure: Error | undefined
  try {
    for await (const chunk of body) {
      options.onChunk()
      const pieces = [...cutter.cut(chunk).map(relay), relayHeld()].filter((piece) => piece !== null)
      if (pieces.length > 0) yield pieces.length === 1 ? (pieces[0] as Buffer) : Buffer.concat(pieces)
    }
  } catch (cause) {
    failure = cause instanceof AppError ? cause : options.explain(cause)
  }
  if (isTerminated) {
    if (cutter.heldBytes > 0) yield cutter.release()
    return
  }
  failure ??= broken(turnTexts.cut)
  if (!(failure instanceof AppError)) return
  options.onBroken(failure)
  if (isPassing) yield Buffer.from('\n\n')
  yield errorEvent(failure, events)
}
