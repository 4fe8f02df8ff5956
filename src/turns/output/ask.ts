import { AppError } from '#errors/app-error.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { type AgentEvent, brokenAnswer, GrowingText, type Usage } from '#turns/gateway-answer.ts'
import type { AgentRequest, TurnRunner } from '#turns/runner.ts'
import { signsOfLife } from '#turns/signs-of-life.ts'
import type { Turn } from '#turns/turn.ts'
import { correction, type OutputFormat } from './format.ts'
import { checkOutput } from './validation.ts'

type Asker = Pick<TurnRunner, 'ask'>

/**
 * Asks an agent like `runner.ask`. With a format other than text, the whole text comes at once, after it was checked:
 * the agent is asked a second time in the same session when its first answer is not valid, and AppError
 * `invalid_output` is thrown when the second one is not either. Batches without events keep a stream alive meanwhile.
 * An answer that ends with a call of the client's tools, at the token limit, or as a failure, is not checked.
 */
export async function askInFormat(
  runner: Asker,
  turn: Turn,
  request: AgentRequest,
  format: OutputFormat,
): Promise<AsyncIterable<AgentEvent[]>> {
  const batches = await runner.ask(turn, request)
  if (format.type === 'text') return batches
  const { organizationId } = request.gateway
  return checkedAnswer(batches, null, {
    check: (text) => checkOutput(organizationId, format, text, turn.signal),
    askAgain: ({ message }) => askAgain(runner, turn, request, message),
  })
}

/** A second question to an agent, whose first answer was not valid. */
export interface Correction {
  message: string
  /** The tokens of the first answer. */
  usageBefore: Usage | null
}

interface Checks {
  check(text: string): ReturnType<typeof checkOutput>
  askAgain(correction: Correction): Promise<AsyncIterable<AgentEvent[]>>
}

/**
 * Yields an answer as `askInFormat` does. With a correction, it is the answer to that, and the agent is not asked again.
 */
export async function* checkedAnswer(
  batches: AsyncIterable<AgentEvent[]>,
  corrected: Correction | null,
  checks: Checks,
): AsyncGenerator<AgentEvent[], void> {
  const read = yield* signsOfLife(readAll(batches))
  const answer = corrected ? addUsage(read, corrected.usageBefore) : read
  if (!mustBeChecked(answer)) return yield answer
  const checked = yield* signsOfLife(checks.check(textOf(answer)))
  if ('text' in checked) return yield withText(answer, checked.text)
  if (corrected) throw new AppError('invalid_output', errorTexts.invalidOutput(checked.fault), { doNotRetry: true })
  const next = { message: correction(checked.fault), usageBefore: usageOf(answer) }
  yield* checkedAnswer(yield* signsOfLife(checks.askAgain(next)), next, checks)
}

async function readAll(batches: AsyncIterable<AgentEvent[]>): Promise<AgentEvent[]> {
  const events: AgentEvent[] = []
  const text = new GrowingText()
  for await (const batch of batches) {
    for (const event of batch) {
      if (event.kind === 'text') text.add(event.text)
      else events.push(event)
    }
    const last = batch.at(-1)
    if (last?.kind === 'end' || last?.kind === 'failed') return withText(events, text.toString())
  }
  throw brokenAnswer(errorTexts.cut)
}

const mustBeChecked = (events: AgentEvent[]): boolean => {
  const last = events.at(-1)
  return last?.kind === 'end' && last.status === 'completed' && events.every(({ kind }) => kind !== 'call')
}

const textOf = (events: AgentEvent[]): string =>
  events.map((event) => (event.kind === 'text' ? event.text : '')).join('')

const withText = (events: AgentEvent[], text: string): AgentEvent[] => {
  const others = events.filter(({ kind }) => kind !== 'text')
  return text === '' ? others : [{ kind: 'text', text }, ...others]
}

/** Adds the tokens of an earlier answer to those of a later one. The sum is unknown if either is. */
const addUsage = (later: AgentEvent[], before: Usage | null): AgentEvent[] =>
  later.map((event) =>
    event.kind === 'end' || event.kind === 'failed' ? { ...event, usage: sumOf(event.usage, before) } : event,
  )

const usageOf = (events: AgentEvent[]): Usage | null => {
  const last = events.at(-1)
  return last?.kind === 'end' || last?.kind === 'failed' ? last.usage : null
}

const sumOf = (a: Usage | null, b: Usage | null): Usage | null =>
  a &&
  b && {
    input_tokens: a.input_tokens + b.input_tokens,
    input_tokens_details: {
      cached_tokens: a.input_tokens_details.cached_tokens + b.input_tokens_details.cached_tokens,
      cache_write_tokens: a.input_tokens_details.cache_write_tokens + b.input_tokens_details.cache_write_tokens,
    },
    output_tokens: a.output_tokens + b.output_tokens,
    output_tokens_details: {
      reasoning_tokens: a.output_tokens_details.reasoning_tokens + b.output_tokens_details.reasoning_tokens,
    },
    total_tokens: a.total_tokens + b.total_tokens,
  }

/** Asks the agent to correct its answer. It has acted already, so clients must not repeat the turn by themselves. */
async function askAgain(runner: Asker, turn: Turn, request: AgentRequest, message: string) {
  turn.received() // the silence of the gateway counts again
  try {
    return await runner.ask(turn, { ...request, body: { ...request.body, input: message } })
  } catch (cause) {
    if (!(cause instanceof AppError) || cause.doNotRetry) throw cause
    throw new AppError(cause.code, cause.message, { cause, doNotRetry: true })
  }
}
