import { randomUUID } from 'node:crypto'
import type { ResponseStatus } from '#database/response-schema.ts'
import type { ToolEvent } from '#openclaw/gateway/run-events.ts'
import { isId, newId } from '#platform/ids.ts'
import { type ShownApproval, toApproval } from '#turns/approval-schema.ts'
import type { ApprovalEvent } from '#turns/approvals.ts'
import { type AgentAct, type AgentOutput, GrowingText } from '#turns/gateway-answer.ts'
import { maxToolEvents } from '#turns/tool-events.ts'
import type { EventFields, EventType, StreamEvent } from './event-schemas.ts'
import type { EchoedFields, OutputItem, ResponseError, ResponseObject, Usage } from './response-schema.ts'

const withoutDashes = (uuid: string) => uuid.replaceAll('-', '')

/** The id of a response: the id of its row after `resp_`, without dashes. Ids sort by time of creation. */
export const toResponseId = (uuid: string): string => `resp_${withoutDashes(uuid)}`
export const newResponseId = (): string => toResponseId(newId())

/** The id of the row of a response. */
export const toUuid = (id: string): string =>
  id.slice('resp_'.length).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
export const isResponseId = (id: string): boolean => id.startsWith('resp_') && id.length === 37 && isId(toUuid(id))

export const newItemId = (kind: 'msg' | 'fc' | 'cmp'): string => `${kind}_${withoutDashes(randomUUID())}`

export const nowInSeconds = (): number => Math.floor(Date.now() / 1000)

/** The state of a response that its turn determines. */
export interface Outcome {
  status: ResponseStatus | 'queued'
  usage: Usage | null
  error: ResponseError | null
}

export const inProgress: Outcome = { status: 'in_progress', usage: null, error: null }
/** The turn waits for the earlier turns of its session. */
export const queued: Outcome = { status: 'queued', usage: null, error: null }
export const cancelled: Outcome = { status: 'cancelled', usage: null, error: null }

const reasons = { incomplete: { reason: 'max_output_tokens' }, cancelled: { reason: 'cancelled' } } as const

/** A response from the moment its request was accepted. */
export interface ResponseDraft {
  id: string
  createdAt: number
  echo: EchoedFields
}

/** The response for clients, complete in every state. */
export const responseObject = (
  { id, createdAt, echo }: ResponseDraft,
  { status, usage, error }: Outcome,
  output: readonly OutputItem[],
): ResponseObject => ({
  id,
  object: 'response',
  created_at: createdAt,
  completed_at: status === 'completed' ? nowInSeconds() : null,
  status,
  incomplete_details: status === 'incomplete' || status === 'cancelled' ? reasons[status] : null,
  error,
  output: [...output],
  usage,
  ...echo,
})

/** An event of a stream. `json` creates its JSON, so that a response without listeners pays for none. */
export interface ResponseEvent {
  type: EventType
  json(): string
}

export const serverSentEvent = ({ type, json }: ResponseEvent): string => `event: ${type}\ndata: ${json()}\n\n`

const terminalType = (status: ResponseObject['status']): EventType =>
  `response.${status === 'completed' || status === 'failed' ? status : 'incomplete'}`

/** The last event of the stream of a response that has ended. */
export const terminalEvent = (response: ResponseObject, sequence_number: number): ResponseEvent => {
  const type = terminalType(response.status)
  return { type, json: () => JSON.stringify({ type, sequence_number, response }) }
}

type Tool = EventFields<'chowder:tool.started'>['tool']

const outputText = <Text extends string>(text: Text) => ({
  type: 'output_text' as const,
  text,
  annotations: [],
  logprobs: [],
})

/**
 * Writes one response while its turn runs: converts the agent's output to events, numbered from 0, and items. An item
 * is added empty with its first output. It is done, with its whole content, when the agent begins the next item, and
 * incomplete when the turn ends first.
 */
export class ResponseWriter {
  readonly #draft: ResponseDraft
  readonly #output: OutputItem[] = []
  #sequence = 0
  /** The message that receives text; `position` is the JSON of its position fields. */
  #message: { id: string; position: string; text: GrowingText } | null = null
  #toolEvents = 0
  /** The tools that run, by the ids of their calls. `at` is null for a start that another process has written. */
  readonly #tools = new Map<string, Tool & { at: number | null }>()

  /** The approvals that wait, by id. */
  readonly #approvals = new Map<string, ShownApproval>()

  constructor(draft: ResponseDraft) {
    this.#draft = draft
  }

  /**
   * Goes on after the events that another process has written, as JSON: numbers, the open message, and the running
   * tools. For a response without calls of the client's tools.
   */
  continueAfter(events: readonly string[]): void {
    for (const json of events) {
      const event = JSON.parse(json) as StreamEvent
      if (event.type === 'response.output_text.delta') this.#text(event.delta, event.item_id)
      if ('tool' in event) {
        this.#toolEvents += 1
        if (event.tool.status === 'in_progress') this.#tools.set(event.tool.id, { ...event.tool, at: null })
        else this.#tools.delete(event.tool.id)
      }
      if ('approval' in event) this.#keep(event.approval)
      this.#sequence = event.sequence_number + 1
    }
  }

  /** The text of the open message. */
  get openText(): string {
    return this.#message?.text.toString() ?? ''
  }

  get pendingApprovals(): string[] {
    return [...this.#approvals.keys()]
  }

  /** The response with its finished items and, while its turn runs, the approvals that it waits for. */
  object(outcome: Outcome): ResponseObject {
    const approvals = outcome.status === 'in_progress' ? [...this.#approvals.values()] : []
    return {
      ...responseObject(this.#draft, outcome, this.#output),
      ...(approvals.length > 0 && { requires_action: { type: 'approval', approvals } }),
    }
  }

  start(): ResponseEvent[] {
    return this.#states(inProgress, 'response.created', 'response.in_progress')
  }

  /** The first events of a waiting response. `begin` follows. */
  queue(): ResponseEvent[] {
    return this.#states(queued, 'response.created', 'response.queued')
  }

  /** Ends the wait. */
  begin(): ResponseEvent[] {
    return this.#states(inProgress, 'response.in_progress')
  }

  write(output: AgentAct): ResponseEvent[] {
    if (output.kind === 'tool') return this.#tool(output)
    if (output.kind === 'approval') return this.#approval(output)
    return output.kind === 'text'
      ? this.#text(output.text)
      : [...this.#endMessage('completed', 'commentary'), ...this.#call(output)]
  }

  /** Ends the open item and the response. Returns the last events, and the response as JSON. Call it last. */
  end(outcome: Outcome): { events: ResponseEvent[]; response: ResponseObject; json: string } {
    const { status } = outcome
    const isAnswer = status === 'completed' || status === 'incomplete'
    const closing = this.#endMessage(
      status === 'completed' ? 'completed' : 'incomplete',
      isAnswer ? 'final_answer' : undefined,
    )
    const response = this.object(outcome)
    const json = JSON.stringify(response)
    return { events: [...closing, this.#lifecycleEvent(terminalType(status), json)], response, json }
  }

  #states(outcome: Outcome, ...types: EventType[]): ResponseEvent[] {
    const json = JSON.stringify(this.object(outcome))
    return types.map((type) => this.#lifecycleEvent(type, json))
  }

  #lifecycleEvent(type: EventType, response: string): ResponseEvent {
    const number = this.#sequence++
    return { type, json: () => `{"type":"${type}","sequence_number":${number},"response":${response}}` }
  }

  #event<T extends EventType>(type: T, fields: EventFields<T>): ResponseEvent {
    const number = this.#sequence++
    return { type, json: () => JSON.stringify({ type, sequence_number: number, ...fields }) }
  }

  // Builds JSON by hand: a turn has hundreds of these events and few others.
  #delta(position: string, text: string): ResponseEvent {
    const type = 'response.output_text.delta'
    const number = this.#sequence++
    const json = () =>
      `{"type":"${type}","sequence_number":${number},${position},"delta":${JSON.stringify(text)},"logprobs":[]}`
    return { type, json }
  }

  /** An end without its start is dropped, and so is everything after `maxToolEvents`. */
  #tool({ id, name, title, status, at }: ToolEvent): ResponseEvent[] {
    if (this.#toolEvents === maxToolEvents) return []
    const started = this.#tools.get(id)
    if ((status === 'in_progress') === (started !== undefined)) return []
    this.#toolEvents += 1
    if (!started) {
      const tool = { id, name, ...(title !== null && { title }), status, started_at: Math.floor(at / 1000) }
      this.#tools.set(id, { ...tool, at })
      return [this.#event('chowder:tool.started', { tool })]
    }
    this.#tools.delete(id)
    const { at: startedAt, ...tool } = started
    const duration = startedAt !== null && { duration_ms: Math.max(at - startedAt, 0) }
    return [this.#event('chowder:tool.ended', { tool: { ...tool, status, ...duration } })]
  }

  #keep(approval: ShownApproval): void {
    if (approval.status === 'pending') this.#approvals.set(approval.id, approval)
    else this.#approvals.delete(approval.id)
  }

  /** One that is known, and an end without a request, are dropped. */
  #approval({ approval }: ApprovalEvent): ResponseEvent[] {
    const isRequest = approval.status === 'pending'
    if (isRequest === this.#approvals.has(approval.id)) return []
    const shown = toApproval(approval)
    this.#keep(shown)
    return [this.#event(isRequest ? 'chowder:approval.requested' : 'chowder:approval.resolved', { approval: shown })]
  }

  #text(text: string, id = newItemId('msg')): ResponseEvent[] {
    if (this.#message) {
      this.#message.text.add(text)
      return [this.#delta(this.#message.position, text)]
    }
    const output_index = this.#output.length
    const position = `"item_id":"${id}","output_index":${output_index},"content_index":0`
    this.#message = { id, position, text: new GrowingText(text) }
    const part = outputText('')
    return [
      this.#event('response.output_item.added', {
        output_index,
        item: { type: 'message', id, status: 'in_progress', role: 'assistant', content: [] },
      }),
      this.#event('response.content_part.added', { item_id: id, output_index, content_index: 0, part }),
      this.#delta(position, text),
    ]
  }

  #endMessage(status: 'completed' | 'incomplete', phase: 'commentary' | 'final_answer' | undefined): ResponseEvent[] {
    if (!this.#message) return []
    const { id } = this.#message
    const text = this.#message.text.toString()
    this.#message = null
    const position = { item_id: id, output_index: this.#output.length, content_index: 0 }
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
      this.#event('response.output_text.done', { ...position, text, logprobs: [] }),
      this.#event('response.content_part.done', { ...position, part }),
      this.#event('response.output_item.done', { output_index: position.output_index, item }),
    ]
  }

  #call({ callId, name, arguments: args }: Extract<AgentOutput, { kind: 'call' }>): ResponseEvent[] {
    const id = newItemId('fc')
    const output_index = this.#output.length
    const item = { type: 'function_call', id, call_id: callId, name, arguments: args, status: 'completed' } as const
    this.#output.push(item)
    const position = { item_id: id, output_index }
    return [
      this.#event('response.output_item.added', {
        output_index,
        item: { ...item, arguments: '', status: 'in_progress' },
      }),
      ...(args === '' ? [] : [this.#event('response.function_call_arguments.delta', { ...position, delta: args })]),
      this.#event('response.function_call_arguments.done', { ...position, arguments: args }),
      this.#event('response.output_item.done', { output_index, item }),
    ]
  }
}
