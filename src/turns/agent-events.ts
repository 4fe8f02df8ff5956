import { AppError } from '#platform/errors.ts'
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

/** The end of a turn as the agent reports it. */
export type AgentEnd =
  | { kind: 'end'; status: 'completed' | 'incomplete'; usage: Usage | null }
  /** `runId` is OpenClaw's id of the turn. `note` is what it noted in the session, where the error says nothing. */
  | { kind: 'failed'; runId: unknown; error: unknown; usage: Usage | null; note?: string | null }

/** An event of a turn. A turn has any number of outputs, then exactly one end. */
export type AgentEvent = AgentOutput | AgentEnd

/** The end of a turn: the one that the agent reports, or the failure that broke its answer off. */
export type TurnEnd = AgentEnd | { kind: 'broken'; cause: unknown }

/** The error for an answer of a gateway that cannot be used. The turn has begun, so it must not be repeated. */
export const brokenAnswer = (text: string) => new AppError('broken_answer', text, { doNotRetry: true })

/**
 * Writes each output of an agent with `write`, and yields together the pieces of outputs that arrived together. Returns
 * the end of the turn, and never throws: an answer that breaks off ends as `broken`.
 */
export async function* writeOutput<Piece>(
  events: AsyncIterable<AgentEvent[]>,
  write: (output: AgentOutput) => Piece[],
): AsyncGenerator<Piece[], TurnEnd> {
  try {
    for await (const batch of events) {
      const pieces: Piece[] = []
      let end: AgentEnd | undefined
      for (const event of batch) {
        if (event.kind === 'text' || event.kind === 'call') pieces.push(...write(event))
        else end = event
      }
      if (pieces.length > 0) yield pieces
      if (end) return end
    }
    return { kind: 'broken', cause: brokenAnswer(errorTexts.cut) }
  } catch (cause) {
    return { kind: 'broken', cause }
  }
}

/** Runs a generator to its end without its pieces, and returns its result. */
export async function resultOf<T>(generator: AsyncGenerator<unknown, T>): Promise<T> {
  let step = await generator.next()
  while (!step.done) step = await generator.next()
  return step.value
}

const maxPieces = 1000

/**
 * The text of an agent, which grows by pieces that may be short and many. A string to which each is added would keep an
 * object of 32 bytes for every piece.
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
