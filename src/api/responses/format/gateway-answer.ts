import { createParser } from 'eventsource-parser'
import { isObject } from '#openclaw/json.ts'
import { AppError } from '#platform/errors.ts'
import { errorTexts } from './error-texts.ts'
import type { Usage } from './response-schema.ts'

/** What an agent says: its words, and calls of the client's tools. */
export type AgentOutput =
  | { kind: 'text'; text: string }
  | { kind: 'call'; callId: string; name: string; arguments: string }

/** How its turn ended by its own account. */
export type AgentEnd =
  | { kind: 'end'; status: 'completed' | 'incomplete'; usage: Usage | null }
  | { kind: 'failed'; error: unknown; usage: Usage | null }

/** What an agent does in a turn, in order: what it says, then exactly one end. */
export type AgentEvent = AgentOutput | AgentEnd

/** How a turn ended: by the agent's account, or because something on the way to it broke. */
export type TurnEnd = AgentEnd | { kind: 'broken'; cause: unknown }

const isEnd = (event: AgentEvent): event is AgentEnd => event.kind === 'end' || event.kind === 'failed'

/** Hands on what an agent says, as it comes, and returns how that ended. Never throws. */
export async function* follow(events: AsyncIterable<AgentEvent[]>): AsyncGenerator<AgentOutput[], TurnEnd> {
  try {
    for await (const batch of events) {
      const said = batch.filter((event): event is AgentOutput => !isEnd(event))
      if (said.length > 0) yield said
      const end = batch.find(isEnd)
      if (end) return end
    }
    throw brokenAnswer(errorTexts.cut)
  } catch (cause) {
    return { kind: 'broken', cause }
  }
}

/** What one answer of an agent may come to, its text above all. */
export const maxAnswerBytes = 64 * 1024 * 1024
/** Each is an item of the response, beside the text before it; models call a handful at once. */
const maxCalls = 1000

export const brokenAnswer = (text: string) => new AppError('gateway_unreachable', text, { doNotRetry: true })
const unreadable = () => brokenAnswer(errorTexts.unreadable)

const count = (value: unknown): number =>
  typeof value === 'number' && Number.isInteger(value) && value > 0 ? value : 0

/** Null when the gateway knows nothing of it, which it says with nothing but zeros. */
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

/** Those of OpenClaw have nine characters. What stands at the other end may be the agent itself. */
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
  return { kind: 'failed', error, usage }
}

const textIn = ({ content }: Record<string, unknown>): string =>
  Array.isArray(content)
    ? content.flatMap((part) => (isObject(part) && typeof part.text === 'string' ? [part.text] : [])).join('')
    : ''

/** Takes what an agent says as long as it does not come to more than one answer may. Throws AppError gateway_unreachable. */
function limitedAnswer(): (said: AgentOutput) => AgentOutput {
  let bytes = 0
  let calls = 0
  return (said) => {
    if (said.kind === 'call') calls += 1
    bytes += Buffer.byteLength(said.kind === 'text' ? said.text : said.callId + said.name + said.arguments)
    if (bytes > maxAnswerBytes || calls > maxCalls) throw brokenAnswer(errorTexts.tooLarge)
    return said
  }
}

/** What happened in a turn, from the gateway's answer in one piece. Throws AppError gateway_unreachable. */
export function readAnswer(bytes: Buffer): AgentEvent[] {
  const response = parse(bytes.toString('utf8'))
  if (!isObject(response) || !Array.isArray(response.output)) throw unreadable()
  const accept = limitedAnswer()
  const events = response.output.flatMap((item): AgentEvent[] => {
    if (!isObject(item)) throw unreadable()
    if (item.type === 'function_call') return [accept(readCall(item))]
    const text = item.type === 'message' ? textIn(item) : ''
    return text === '' ? [] : [accept({ kind: 'text', text })]
  })
  return [...events, readEnd(response)]
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw unreadable()
  }
}

/**
 * Reads a gateway's stream: all that each chunk of bytes completes. Whoever reads gets exactly one end, the last of all;
 * a stream that ends without one, breaks, or cannot be read throws AppError gateway_unreachable, or what the body threw.
 * The gateway opens a message before it knows whether there will be one, and closes it though nothing was said: here is
 * only what was said.
 */
export async function* readStream(body: AsyncIterable<Buffer>): AsyncGenerator<AgentEvent[]> {
  const decoder = new TextDecoder()
  let happened: AgentEvent[] = []
  const accept = limitedAnswer()
  let said = ''
  let isOver = false

  const read = (data: string): AgentEvent[] => {
    if (isOver || data === '[DONE]') return []
    const parsed = parse(data)
    if (!isObject(parsed)) throw unreadable()
    if (parsed.type === 'response.output_text.delta') {
      if (typeof parsed.delta !== 'string') throw unreadable()
      said += parsed.delta
      return parsed.delta === '' ? [] : [accept({ kind: 'text', text: parsed.delta })]
    }
    if (parsed.type === 'response.output_text.done') {
      const { text } = parsed
      if (typeof text !== 'string' || !text.startsWith(said)) throw unreadable()
      const rest = text.slice(said.length)
      said = text
      return rest === '' ? [] : [accept({ kind: 'text', text: rest })]
    }
    if (parsed.type === 'response.output_item.done') {
      return isObject(parsed.item) && parsed.item.type === 'function_call' ? [accept(readCall(parsed.item))] : []
    }
    if (!ends.has(String(parsed.type))) return []
    isOver = true
    return [readEnd(parsed.response)]
  }
  const parser = createParser({
    maxBufferSize: maxAnswerBytes,
    onEvent: ({ data }) => happened.push(...read(data)),
    onError({ type }) {
      if (type === 'max-buffer-size-exceeded') throw brokenAnswer(errorTexts.tooLarge)
    },
  })

  for await (const chunk of body) {
    parser.feed(decoder.decode(chunk, { stream: true }))
    const events = happened
    happened = []
    if (events.length > 0) yield events
    if (isOver) return
  }
  throw brokenAnswer(errorTexts.cut)
}

const ends = new Set(['response.completed', 'response.incomplete', 'response.failed'])
