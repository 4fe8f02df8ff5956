import { createParser } from 'eventsource-parser'
import { AppError } from '#errors/app-error.ts'
import type { ToolEvent } from '#openclaw/gateway/run-events.ts'
import { isObject } from '#openclaw/json.ts'
import { exceededBound, type JsonBounds } from '#platform/json/bounds.ts'
import { parseJsonBytes } from '#platform/json/thread.ts'
import type { ApprovalEvent } from './approvals.ts'
import { errorTexts } from './error-texts.ts'

/** The tokens of a turn. */
export interface Usage {
  input_tokens: number
  input_tokens_details: { cached_tokens: number; cache_write_tokens: number }
  output_tokens: number
  output_tokens_details: { reasoning_tokens: number }
  total_tokens: number
}

/** Output of an agent: a piece of text, or a call of one of the client's tools. */
export type AgentOutput =
  | { kind: 'text'; text: string }
  | { kind: 'call'; callId: string; name: string; arguments: string }

/** An act of the agent: its output, its approvals, and the events of its own tools for callers who asked for them. */
export type AgentAct = AgentOutput | ToolEvent | ApprovalEvent

/** The end of a turn as the agent reports it. */
export type AgentEnd =
  | { kind: 'end'; status: 'completed' | 'incomplete'; usage: Usage | null }
  /** `runId` is OpenClaw's id of the turn. `note` is its entry in the session, if the error has no reason. */
  | { kind: 'failed'; runId: unknown; error: unknown; usage: Usage | null; note?: string | null }

/** An event of a turn. A turn has any number of outputs, then exactly one end. */
export type AgentEvent = AgentAct | AgentEnd

/** The end of a turn: as reported by the agent, or the failure that broke its answer off. */
export type TurnEnd = AgentEnd | { kind: 'broken'; cause: unknown }

/** The error for an unusable answer of a gateway. The turn has begun, so it must not be repeated. */
export const brokenAnswer = (text: string) => new AppError('gateway_unreachable', text, { doNotRetry: true })

/**
 * Writes each output of an agent with `write`, and yields together the pieces of outputs that arrived together. A batch
 * without events stays one without pieces. Returns the end of the turn, and never throws: an answer that breaks off ends
 * as `broken`.
 */
export async function* writeOutput<Piece>(
  events: AsyncIterable<AgentEvent[]>,
  write: (act: AgentAct) => Piece[],
): AsyncGenerator<Piece[], TurnEnd> {
  try {
    for await (const batch of events) {
      const pieces: Piece[] = []
      let end: AgentEnd | undefined
      for (const event of batch) {
        if (event.kind === 'end' || event.kind === 'failed') end = event
        else pieces.push(...write(event))
      }
      if (pieces.length > 0 || batch.length === 0) yield pieces
      if (end) return end
    }
    return { kind: 'broken', cause: brokenAnswer(errorTexts.cut) }
  } catch (cause) {
    return { kind: 'broken', cause }
  }
}

/** Runs a generator to its end, drops its pieces, and returns its result. */
export async function resultOf<T>(generator: AsyncGenerator<unknown, T>): Promise<T> {
  let step = await generator.next()
  while (!step.done) step = await generator.next()
  return step.value
}

const maxPieces = 1000

/**
 * The text of an agent, which grows by many short pieces. A concatenated string would keep an object of 32 bytes for
 * every piece.
 */
export class GrowingText {
  readonly #blocks: string[] = []
  #pieces: string[] = []

  constructor(text = '') {
    this.add(text)
  }

  add(piece: string): void {
    this.#pieces.push(piece)
    if (this.#pieces.length < maxPieces) return
    this.#blocks.push(this.#pieces.join(''))
    this.#pieces = []
  }

  toString(): string {
    return [...this.#blocks, ...this.#pieces].join('')
  }
}

/** Maximum size of an agent's answer; most of it is text. */
export const maxAnswerBytes = 8 * 1024 * 1024
/** Maximum size of a stream with all events: one for a token has some 200 bytes. */
const maxStreamBytes = 64 * 1024 * 1024
/** Bounds of an answer and of an event: many times the maximum number of calls. */
const answerBounds: JsonBounds = { depth: 200, values: 20_000, isLenient: true }
/** Each call is an item of the response. Models make a handful of calls at once. */
const maxCalls = 1000

const terminalEvents: ReadonlySet<string> = new Set(['response.completed', 'response.incomplete', 'response.failed'])

const unreadable = () => brokenAnswer(errorTexts.unreadable)

const count = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : 0

/** Returns null when the gateway reports only zeros, which means that the usage is unknown. */
function readUsage(usage: unknown): Usage | null {
  if (!isObject(usage)) return null
  const input = isObject(usage.input_tokens_details) ? usage.input_tokens_details : {}
  const output = isObject(usage.output_tokens_details) ? usage.output_tokens_details : {}
  const read: Usage = {
    input_tokens: count(usage.input_tokens),
    input_tokens_details: {
      cached_tokens: count(input.cached_tokens),
      cache_write_tokens: count(input.cache_write_tokens),
    },
    output_tokens: count(usage.output_tokens),
    output_tokens_details: { reasoning_tokens: count(output.reasoning_tokens) },
    total_tokens: count(usage.total_tokens),
  }
  return read.total_tokens > 0 ? read : null
}

// OpenClaw's ids have nine characters. An agent may have replaced its gateway, so any other id is checked.
const callIdFormat = /^[\x21-\x7e]{1,64}$/

function readCall(item: Record<string, unknown>): AgentOutput {
  const { call_id: callId, name, arguments: args } = item
  if (typeof callId !== 'string' || !callIdFormat.test(callId)) throw unreadable()
  if (typeof name !== 'string' || typeof args !== 'string') throw unreadable()
  return { kind: 'call', callId, name, arguments: args }
}

function readEnd(response: unknown): AgentEvent {
  if (!isObject(response)) throw unreadable()
  const { status, error } = response
  const usage = readUsage(response.usage)
  if (status === 'completed' || status === 'incomplete') return { kind: 'end', status, usage }
  return { kind: 'failed', runId: response.id, error, usage }
}

const textIn = ({ content }: Record<string, unknown>): string =>
  Array.isArray(content)
    ? content.flatMap((part) => (isObject(part) && typeof part.text === 'string' ? [part.text] : [])).join('')
    : ''

/** Returns a function that passes output on, and throws AppError gateway_unreachable once the answer is too large. */
function limitOutput(): (output: AgentOutput) => AgentOutput {
  let bytes = 0
  let calls = 0
  return (output) => {
    if (output.kind === 'call') calls += 1
    bytes += Buffer.byteLength(output.kind === 'text' ? output.text : output.callId + output.name + output.arguments)
    if (bytes > maxAnswerBytes || calls > maxCalls) throw brokenAnswer(errorTexts.tooLarge)
    return output
  }
}

/** The error for an answer that could not be parsed. */
const unparsed = (error: unknown): unknown => {
  if (!(error instanceof AppError)) return error
  if (error.code === 'overloaded') return new AppError('overloaded', error.message, { doNotRetry: true })
  return error.code === 'too_large' ? brokenAnswer(errorTexts.tooLarge) : unreadable()
}

/**
 * Parses an answer that a gateway sent as one JSON object. Throws AppError gateway_unreachable, or overloaded when too
 * many large answers wait for the thread.
 */
export async function readAnswer(bytes: Buffer): Promise<AgentEvent[]> {
  const response = await parseJsonBytes(bytes, answerBounds).catch((error: unknown) => {
    throw unparsed(error)
  })
  if (!isObject(response) || !Array.isArray(response.output)) throw unreadable()
  const limited = limitOutput()
  const events = response.output.flatMap((item): AgentEvent[] => {
    if (!isObject(item)) throw unreadable()
    if (item.type === 'function_call') return [limited(readCall(item))]
    const text = item.type === 'message' ? textIn(item) : ''
    return text === '' ? [] : [limited({ kind: 'text', text })]
  })
  return [...events, readEnd(response)]
}

/** Parses an event, whose buffer is bounded, without a thread: its few values are built quickly. */
function parse(text: string): unknown {
  const exceeded = exceededBound(Buffer.from(text), answerBounds)
  if (exceeded !== null) throw exceeded === 'values' ? brokenAnswer(errorTexts.tooLarge) : unreadable()
  try {
    return JSON.parse(text)
  } catch {
    throw unreadable()
  }
}

/**
 * Parses an answer that a gateway sends as a stream. Yields the events that each chunk of bytes completes, exactly one
 * end as the last. Throws AppError gateway_unreachable when the stream is malformed or has no end, errors of the body,
 * and an error when the stream is too large. The gateway adds a message before it knows whether there will be text, so
 * only text and calls are events. `onRun` is called with OpenClaw's id of the turn.
 */
export async function* readStream(
  body: AsyncIterable<Buffer>,
  onRun?: (runId: string) => void,
): AsyncGenerator<AgentEvent[]> {
  const decoder = new TextDecoder()
  let events: AgentEvent[] = []
  const limited = limitOutput()
  let text = new GrowingText()
  let hasEnded = false

  const read = (data: string): AgentEvent[] => {
    if (hasEnded || data === '[DONE]') return []
    const parsed = parse(data)
    if (!isObject(parsed)) throw unreadable()
    if (parsed.type === 'response.created' && isObject(parsed.response) && typeof parsed.response.id === 'string') {
      onRun?.(parsed.response.id)
    }
    if (parsed.type === 'response.output_text.delta') {
      if (typeof parsed.delta !== 'string') throw unreadable()
      text.add(parsed.delta)
      return parsed.delta === '' ? [] : [limited({ kind: 'text', text: parsed.delta })]
    }
    if (parsed.type === 'response.output_text.done') {
      const { text: whole } = parsed
      const known = text.toString()
      if (typeof whole !== 'string' || !whole.startsWith(known)) throw unreadable()
      const rest = whole.slice(known.length)
      text = new GrowingText(whole)
      return rest === '' ? [] : [limited({ kind: 'text', text: rest })]
    }
    if (parsed.type === 'response.output_item.done') {
      return isObject(parsed.item) && parsed.item.type === 'function_call' ? [limited(readCall(parsed.item))] : []
    }
    if (!terminalEvents.has(String(parsed.type))) return []
    hasEnded = true
    return [readEnd(parsed.response)]
  }
  const parser = createParser({
    maxBufferSize: maxAnswerBytes,
    onEvent: ({ data }) => events.push(...read(data)),
    onError({ type }) {
      if (type === 'max-buffer-size-exceeded') throw brokenAnswer(errorTexts.tooLarge)
    },
  })

  let bytes = 0
  for await (const chunk of body) {
    bytes += chunk.length
    if (bytes > maxStreamBytes) throw brokenAnswer(errorTexts.tooLarge)
    parser.feed(decoder.decode(chunk, { stream: true }))
    const completed = events
    events = []
    if (completed.length > 0) yield completed
    if (hasEnded) return
  }
  throw brokenAnswer(errorTexts.cut)
}
