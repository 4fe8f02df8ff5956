import type { AgentOutput } from './gateway-answer.ts'
import { inProgress, newItemId, type Outcome, outputText, responseObject } from './response-object.ts'
import type { EchoedFields, OutputItem, ResponseObject } from './response-schema.ts'

/** An event as it goes out: its type, and its whole JSON, which is not made where nobody listens to events. */
export interface ResponseEvent {
  type: string
  json(): string
}

/**
 * One response as it comes to be: turns what an agent does into the format's events, numbered from 0, and into the items of
 * its output. An item opens empty with the first thing that is in it, and closes whole: with all that was said when the
 * agent goes on to the next, or incomplete when the turn ends under it.
 */
export class ResponseWriter {
  readonly #response: { id: string; createdAt: number; echo: EchoedFields }
  readonly #output: OutputItem[] = []
  #sequence = 0
  #message: { id: string; place: string; text: string } | null = null

  constructor(response: { id: string; createdAt: number; echo: EchoedFields }) {
    this.#response = response
  }

  /** The response as it stands, with what is closed. */
  object(outcome: Outcome): ResponseObject {
    return responseObject(this.#response, outcome, this.#output)
  }

  start(): ResponseEvent[] {
    const json = JSON.stringify(this.object(inProgress))
    return [this.#whole('response.created', json), this.#whole('response.in_progress', json)]
  }

  write(said: AgentOutput): ResponseEvent[] {
    return said.kind === 'text'
      ? this.#text(said.text)
      : [...this.#close('completed', 'commentary'), ...this.#call(said)]
  }

  /** Closes what is open and tells how it ended, also as the response with its JSON; nothing may follow. */
  end(outcome: Outcome): { events: ResponseEvent[]; response: ResponseObject; json: string } {
    const { status } = outcome
    const isAnswer = status === 'completed' || status === 'incomplete'
    const closing = this.#close(
      status === 'completed' ? 'completed' : 'incomplete',
      isAnswer ? 'final_answer' : undefined,
    )
    const response = this.object(outcome)
    const json = JSON.stringify(response)
    const type = status === 'completed' || status === 'failed' ? status : 'incomplete'
    return { events: [...closing, this.#whole(`response.${type}`, json)], response, json }
  }

  #whole(type: string, response: string): ResponseEvent {
    const at = this.#sequence++
    return { type, json: () => `{"type":"${type}","sequence_number":${at},"response":${response}}` }
  }

  #event(type: string, fields: object): ResponseEvent {
    const at = this.#sequence++
    return { type, json: () => JSON.stringify({ type, sequence_number: at, ...fields }) }
  }

  // Written by hand: there are hundreds of these in a turn, and a few of all others.
  #delta(place: string, text: string): ResponseEvent {
    const type = 'response.output_text.delta'
    const at = this.#sequence++
    const json = () =>
      `{"type":"${type}","sequence_number":${at},${place},"delta":${JSON.stringify(text)},"logprobs":[]}`
    return { type, json }
  }

  #text(text: string): ResponseEvent[] {
    if (this.#message) {
      this.#message.text += text
      return [this.#delta(this.#message.place, text)]
    }
    const id = newItemId('msg')
    const output_index = this.#output.length
    const place = `"item_id":"${id}","output_index":${output_index},"content_index":0`
    this.#message = { id, place, text }
    const item = { type: 'message', id, status: 'in_progress', role: 'assistant', content: [] }
    const part = outputText('')
    return [
      this.#event('response.output_item.added', { output_index, item }),
      this.#event('response.content_part.added', { item_id: id, output_index, content_index: 0, part }),
      this.#delta(place, text),
    ]
  }

  #close(status: 'completed' | 'incomplete', phase: 'commentary' | 'final_answer' | undefined): ResponseEvent[] {
    if (!this.#message) return []
    const { id, text } = this.#message
    this.#message = null
    const at = { item_id: id, output_index: this.#output.length, content_index: 0 }
    const part = outputText(text)
    const item: OutputItem = {
      type: 'message',
      id,
      status,
      role: 'assistant',
      content: [part],
      ...(phase && { phase }),
    }
    this.#output.push(item)
    return [
      this.#event('response.output_text.done', { ...at, text, logprobs: [] }),
      this.#event('response.content_part.done', { ...at, part }),
      this.#event('response.output_item.done', { output_index: at.output_index, item }),
    ]
  }

  #call({ callId, name, arguments: args }: { callId: string; name: string; arguments: string }): ResponseEvent[] {
    const id = newItemId('fc')
    const output_index = this.#output.length
    const item = {
      type: 'function_call' as const,
      id,
      call_id: callId,
      name,
      arguments: args,
      status: 'completed' as const,
    }
    this.#output.push(item)
    const at = { item_id: id, output_index }
    return [
      this.#event('response.output_item.added', {
        output_index,
        item: { ...item, arguments: '', status: 'in_progress' },
      }),
      ...(args === '' ? [] : [this.#event('response.function_call_arguments.delta', { ...at, delta: args })]),
      this.#event('response.function_call_arguments.done', { ...at, arguments: args }),
      this.#event('response.output_item.done', { output_index, item }),
    ]
  }
}
