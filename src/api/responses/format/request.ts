import { AppError } from '#errors/app-error.ts'
import type { RunningGateway } from '#instances/find.ts'
import { modelFault } from '#openclaw/models/check-models.ts'
import { findModel } from '#openclaw/models/models.ts'
import { bareModel } from '#openclaw/models/providers.ts'
import { isLongerThan } from '#platform/json/length.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { contentParts, type InputItem } from './input-schema.ts'
import { invalidField, type RefusedField, refuseFields } from './invalid-field.ts'
import { type CreateResponse, responseFields } from './request-schema.ts'
import type { EchoedFields } from './response-schema.ts'
import { conversationId } from './session.ts'
import { readFormat } from './text-format.ts'
import { type OfferedTools, readToolChoice, readTools } from './tools.ts'

/** Maximum length of the repeated texts: every state in a stream contains them. */
const maxEchoCharacters = 1_000_000

/** A request that an agent can honour. */
export interface CheckedRequest extends OfferedTools {
  /** The fields that the response repeats. */
  echo: EchoedFields
  items: InputItem[]
  /** The sampling parameters that reach the model. */
  sampling: { temperature?: number; top_p?: number }
}

/** The properties of a gateway that limit the requests that it can honour. */
type Target = Pick<RunningGateway, 'provider' | 'release' | 'model'>

/** Fields that would change or limit the answer, and that an agent cannot honour. */
const refusedFields: RefusedField<CreateResponse>[] = [
  ['max_tool_calls', () => true, 'the tool calls of an agent cannot be limited.'],
  ['presence_penalty', (value) => value !== 0, 'must be 0: OpenClaw does not pass it to the model.'],
  ['frequency_penalty', (value) => value !== 0, 'must be 0: OpenClaw does not pass it to the model.'],
  ['top_logprobs', (value) => value !== 0, 'must be 0: an agent reports no probabilities.'],
  ['prompt', () => true, 'there are no stored prompts.'],
]

/** Opens the `encrypted_content` of a compaction. Null when it was not made for the instance of the request. */
export type OpenSummary = (encryptedContent: string) => string | null

/** Checks a request for one gateway. Throws AppError invalid that names the field that cannot be honoured, or too_large. */
export function readRequest(
  body: CreateResponse,
  { provider, release, model: ownModel }: Target,
  openSummary: OpenSummary = () => null,
): CheckedRequest {
  const model = body.model === 'openclaw' ? ownModel : bareModel(body.model)
  // Checked first: with a model that is shut down, no other field matters.
  const fault = body.model === 'openclaw' ? null : modelFault(release, provider, body.model)
  if (fault !== null) throw invalidField('model', fault.message, fault.code)
  refuseFields(body, responseFields, refusedFields)
  if (body.on_interrupted === 'resume' && !body.background) {
    throw invalidField('on_interrupted', 'needs background: true.', 'unsupported_value')
  }
  if (body.include?.includes('message.output_text.logprobs')) {
    throw invalidField('include', 'an agent reports no probabilities.', 'unsupported_value')
  }
  const format = readFormat(body.text?.format)
  const abilities = findModel(release, provider, model)
  const tools = readTools(body.tools, body.parallel_tool_calls ?? true)
  const { echo: toolChoice, ...offered } = readToolChoice(body.tool_choice, tools)
  if (isLongerThan([body.instructions, tools, toolChoice], maxEchoCharacters)) {
    throw new AppError('too_large', errorTexts.longEcho(maxEchoCharacters))
  }
  const items = readItems(body.input, openSummary)
  if (!abilities.images) refuseImages(items, model)
  const sampling = {
    ...(abilities.temperature && typeof body.temperature === 'number' && { temperature: body.temperature }),
    ...(abilities.top_p && typeof body.top_p === 'number' && { top_p: body.top_p }),
  }
  const echo: EchoedFields = {
    model: body.model,
    previous_response_id: body.previous_response_id ?? null,
    instructions: body.instructions ?? null,
    ...(body.conversation && { conversation: { id: conversationId(body.conversation) } }),
    metadata: body.metadata ?? {},
    tools,
    tool_choice: toolChoice,
    parallel_tool_calls: true,
    text: { format },
    reasoning: { effort: null, summary: null },
    temperature: sampling.temperature ?? 1,
    top_p: sampling.top_p ?? 1,
    presence_penalty: 0,
    frequency_penalty: 0,
    top_logprobs: 0,
    max_output_tokens: body.max_output_tokens ?? null,
    max_tool_calls: null,
    truncation: 'auto',
    store: body.store ?? true,
    background: body.background ?? false,
    service_tier: 'default',
    safety_identifier: null,
    prompt_cache_key: null,
  }
  return { echo, items, sampling, ...offered }
}

type PlainItem = Exclude<InputItem, { type: 'compaction' }>
const acceptedItems: ReadonlySet<string> = new Set<PlainItem['type']>([
  'message',
  'function_call',
  'function_call_output',
  'reasoning',
  'item_reference',
])
const isAccepted = (item: { type: string }): item is PlainItem => acceptedItems.has(item.type)

/** The items of an input, with opened compactions. Throws AppError invalid for an item that an agent does not accept. */
export function readItems(input: CreateResponse['input'], openSummary: OpenSummary): InputItem[] {
  if (typeof input === 'string') return [{ type: 'message', role: 'user', content: input }]
  return input.map((item, index) => {
    if (isAccepted(item)) return item
    if (item.type === 'compaction')
      return { ...item, summary: openedSummary(item.encrypted_content, index, openSummary) }
    throw invalidField(`input.${index}.type`, `an agent does not accept ${item.type} items.`, 'unsupported_value')
  })
}

function openedSummary(encryptedContent: string, index: number, openSummary: OpenSummary): string {
  const summary = openSummary(encryptedContent)
  if (summary !== null) return summary
  throw invalidField(
    `input.${index}.encrypted_content`,
    'cannot be opened: it was made for another instance or organization, was altered, or its secret key is gone. ' +
      'Send the conversation itself, or compact it again.',
  )
}

// OpenClaw would drop the image without an error.
function refuseImages(items: InputItem[], model: string): void {
  const index = items.findIndex((item) => contentParts(item).some(({ type }) => type === 'input_image'))
  if (index >= 0)
    throw invalidField(`input.${index}`, `OpenClaw does not show images to the model ${model}.`, 'unsupported_value')
}

/** The items and calls of an input that a session has from earlier turns. */
export interface KnownItems {
  itemIds: ReadonlySet<string>
  /** Calls of the agent that wait for their results. */
  pendingCalls: ReadonlySet<string>
  /** Calls of the agent that have their results. */
  answeredCalls: ReadonlySet<string>
}

export const noKnownItems: KnownItems = { itemIds: new Set(), pendingCalls: new Set(), answeredCalls: new Set() }

/** The ids of an input that may name items and calls of the session. */
export function referencedIds(items: readonly InputItem[]): { itemIds: string[]; callIds: string[] } {
  const isOfClient = ({ type }: InputItem) => type === 'reasoning' || type === 'compaction'
  const itemIds = items.flatMap((item) => (isOfClient(item) || !item.id ? [] : [item.id]))
  const callIds = items.flatMap((item) => ('call_id' in item ? [item.call_id] : []))
  return { itemIds: [...new Set(itemIds)], callIds: [...new Set(callIds)] }
}

/** The ids of the calls in the input itself. */
const callsIn = (items: readonly InputItem[]): ReadonlySet<string> =>
  new Set(items.flatMap((item) => (item.type === 'function_call' ? [item.call_id] : [])))

/** The number of items up to the last one that the session already has. */
function countKnown(items: readonly InputItem[], { itemIds, pendingCalls, answeredCalls }: KnownItems): number {
  const calls = callsIn(items)
  return (
    1 +
    items.findLastIndex((item) => {
      if (item.type === 'reasoning') return false
      if (item.type === 'function_call') return pendingCalls.has(item.call_id) || answeredCalls.has(item.call_id)
      // The input repeats a call with a stored result, so the session has this result too.
      if (item.type === 'function_call_output') return calls.has(item.call_id) && answeredCalls.has(item.call_id)
      return item.id != null && itemIds.has(item.id)
    })
  )
}

/**
 * Finds the items of an input that the session does not have yet. Many clients send the whole conversation with every
 * turn, and the agent must not read it twice. So all items up to the last one that the session made itself are skipped.
 * Returns their number, and the pending calls whose results come after them.
 *
 * Throws AppError invalid for a reference to an item, or the result of a call, that the session does not have. The
 * result of a call that is in the input itself is accepted: both are history from the client.
 */
export function skipKnownItems(
  items: readonly InputItem[],
  known: KnownItems,
): { offset: number; answeredCallIds: string[] } {
  const offset = countKnown(items, known)
  const calls = callsIn(items)
  const answeredCallIds: string[] = []
  for (const [index, item] of items.entries()) {
    if (item.type === 'item_reference' && !known.itemIds.has(item.id)) {
      throw invalidField(
        `input.${index}.id`,
        `this session has no item ${JSON.stringify(item.id.slice(0, 100))}.`,
        'invalid_value',
      )
    }
    if (index < offset || item.type !== 'function_call_output') continue
    const { call_id: callId } = item
    if (known.pendingCalls.has(callId)) answeredCallIds.push(callId)
    else if (known.answeredCalls.has(callId) || !calls.has(callId)) {
      const why = known.answeredCalls.has(callId) ? 'already has its result' : 'does not wait for a result'
      throw invalidField(
        `input.${index}.call_id`,
        `the call ${JSON.stringify(callId)} ${why} in this session.`,
        'invalid_value',
      )
    }
  }
  return { offset, answeredCallIds }
}
