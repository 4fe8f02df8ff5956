import { AppError } from '#errors/app-error.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { type AgentEvent, brokenAnswer, GrowingText, type Usage } from '#turns/gateway-answer.ts'
import type { AgentRequest, TurnRunner } from '#turns/runner.ts'
import { signsOfLife } from '#turns/signs-of-life.ts'
import type { Turn } from '#turns/turn.ts'
import { correction, type JsonFormat, type OutputFormat } from './format.ts'
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
  return format.type === 'text' ? batches : checkedAnswer(runner, turn, request, format, batches)
}

async function* checkedAnswer(
  runner: Asker,
  turn: Turn,
  request: AgentRequest,
  format: JsonFormat,
  batches: AsyncIterable<AgentEvent[]>,
): AsyncGenerator<AgentEvent[], void> {
  const { organizationId } = request.gateway
  const first = yield* signsOfLife(readAll(batches))
  if (!mustBeChecked(first)) return yield first
  const checked = yield* signsOfLife(checkOutput(organizationId, format, textOf(first), turn.signal))
  if ('text' in checked) return yield withText(first, checked.text)

  const again = yield* signsOfLife(askAgain(runner, turn, request, checked.fault))
  const second = addUsage(yield* signsOfLife(readAll(again)), first)
  if (!mustBeChecked(second)) return yield second
  const checkedAgain = yield* signsOfLife(checkOutput(organizationId, format, textOf(second), turn.signal))
  if ('text' in checkedAgain) return yield withText(second, checkedAgain.text)
  throw new AppError('invalid_output', errorTexts.invalidOutput(checkedAgain.fault), { doNotRetry: true })
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
const addUsage = (later: AgentEvent[], earlier: AgentEvent[]): AgentEvent[] => {
  const before = usageOf(earlier)
  return later.map((event) =>
    event.kind === 'end' || event.kind === 'failed' ? { ...event, usage: sumOf(event.usage, before) } : event,
  )
}

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
async function askAgain(runner: Asker, turn: Turn, request: AgentRequest, fault: string) {
  turn.received() // the silence of the gateway counts again
  try {
    return await runner.ask(turn, { ...request, body: { ...request.body, input: correction(fault) } })
  } catch (cause) {
    if (!(cause instanceof AppError) || cause.doNotRetry) throw cause
    throw new AppError(cause.code, cause.message, { cause, doNotRetry: true })
  }
}
