import { randomUUID } from 'node:crypto'
import type { Usage } from '#api/responses/format/response-schema.ts'
import { nowInSeconds } from '#api/responses/format/response-writer.ts'
import { type AgentAct, type AgentEnd, type AgentOutput, GrowingText } from '#turns/gateway-answer.ts'
import type { ChatChunk, ChatCompletion, ChatDelta, ChatUsage, FinishReason } from './completion-schema.ts'

const usageOf = (usage: Usage): ChatUsage => ({
  prompt_tokens: usage.input_tokens,
  completion_tokens: usage.output_tokens,
  total_tokens: usage.total_tokens,
  prompt_tokens_details: { cached_tokens: usage.input_tokens_details.cached_tokens, audio_tokens: 0 },
  completion_tokens_details: {
    reasoning_tokens: usage.output_tokens_details.reasoning_tokens,
    audio_tokens: 0,
    accepted_prediction_tokens: 0,
    rejected_prediction_tokens: 0,
  },
})

/** A completion as the chunks of a stream: all of it in one, and its end. */
export function chunksOf({ choices: [choice], usage, ...common }: ChatCompletion, includeUsage: boolean): string[] {
  if (!choice) throw new Error('a completion has no choice')
  const { message, finish_reason } = choice
  const { role, content, refusal, tool_calls } = message
  const calls = tool_calls && { tool_calls: tool_calls.map((call, index) => ({ index, ...call })) }
  const delta = { role, content: content ?? '', refusal, ...calls }
  const one = { index: 0 as const, logprobs: null }
  const chunk = (fields: Pick<ChatChunk, 'choices' | 'usage'>) => {
    const written: ChatChunk = { ...common, object: 'chat.completion.chunk', ...fields }
    return JSON.stringify(written)
  }
  const noUsage = includeUsage && { usage: null }
  return [
    chunk({ choices: [{ ...one, delta, finish_reason: null }], ...noUsage }),
    chunk({ choices: [{ ...one, delta: {}, finish_reason }], ...noUsage }),
    ...(includeUsage ? [chunk({ choices: [], usage: usage ?? null })] : []),
  ]
}

/** The end of a turn that did not fail. */
type End = Extract<AgentEnd, { kind: 'end' }>

/** Writes one chat completion while its turn runs: in chunks, or whole at its end. */
export class ChatCompletionWriter {
  readonly #common: { id: string; created: number; model: string }
  readonly #includeUsage: boolean
  readonly #text = new GrowingText()
  readonly #calls: Extract<AgentOutput, { kind: 'call' }>[] = []

  constructor(model: string, includeUsage: boolean) {
    this.#common = { id: `chatcmpl-${randomUUID().replaceAll('-', '')}`, created: nowInSeconds(), model }
    this.#includeUsage = includeUsage
  }

  start(): string[] {
    return [this.#chunk({ role: 'assistant', content: '', refusal: null })]
  }

  write(output: AgentAct): string[] {
    if (output.kind === 'tool' || output.kind === 'approval') return [] // the format has no such chunk
    if (output.kind === 'text') {
      this.#text.add(output.text)
      return [this.#chunk({ content: output.text })]
    }
    const { callId: id, name, arguments: args } = output
    const index = this.#calls.push(output) - 1
    return [
      this.#chunk({ tool_calls: [{ index, id, type: 'function', function: { name, arguments: '' } }] }),
      this.#chunk({ tool_calls: [{ index, function: { arguments: args } }] }),
    ]
  }

  end({ status, usage }: End): string[] {
    const last = this.#chunk({}, this.#finish(status))
    return this.#includeUsage ? [last, this.#json({ choices: [], usage: usage && usageOf(usage) })] : [last]
  }

  /** The completion with all output so far. */
  completion({ status, usage }: End): ChatCompletion {
    const calls = this.#calls.map(({ callId: id, name, arguments: args }) => ({
      id,
      type: 'function' as const,
      function: { name, arguments: args },
    }))
    const text = this.#text.toString()
    const content = text === '' && calls.length > 0 ? null : text
    const message = { role: 'assistant' as const, content, refusal: null, annotations: [] }
    return {
      ...this.#common,
      object: 'chat.completion',
      choices: [
        {
          index: 0,
          message: calls.length > 0 ? { ...message, tool_calls: calls } : message,
          logprobs: null,
          finish_reason: this.#finish(status),
        },
      ],
      ...(usage && { usage: usageOf(usage) }),
      service_tier: 'default',
      system_fingerprint: null,
    }
  }

  #finish(status: End['status']): FinishReason {
    if (this.#calls.length > 0) return 'tool_calls'
    return status === 'incomplete' ? 'length' : 'stop'
  }

  #chunk(delta: ChatDelta, finish_reason: FinishReason | null = null): string {
    const choices = [{ index: 0 as const, delta, logprobs: null, finish_reason }]
    return this.#json(this.#includeUsage ? { choices, usage: null } : { choices })
  }

  #json(fields: Pick<ChatChunk, 'choices' | 'usage'>): string {
    const chunk: ChatChunk = {
      ...this.#common,
      object: 'chat.completion.chunk',
      service_tier: 'default',
      system_fingerprint: null,
      ...fields,
    }
    return JSON.stringify(chunk)
  }
}
