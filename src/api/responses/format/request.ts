import type { RunningGateway } from '#instances/find.ts'
import { bareModel } from '#openclaw/model.ts'
import { abilitiesOf } from '#openclaw/releases.ts'
import { AppError } from '#platform/errors.ts'
import { type MediaSource, maxUrlParts, readFileData, readFileUrl, readImage } from './media.ts'
import {
  type ContentPart,
  type CreateResponse,
  type InputItem,
  type MessageItem,
  responseFields,
} from './request-schema.ts'
import type { EchoedFields, ResponseTool, ResponseToolChoice } from './response-schema.ts'

/** A request, read and found good: what its response will repeat, and what the agent is to be told. */
export interface CheckedRequest {
  echo: EchoedFields
  items: InputItem[]
  /** What the model is told. */
  sampling: { temperature?: number; top_p?: number }
  /** Only those that `tool_choice` allows. */
  tools: ResponseTool[]
  toolChoice: Exclude<ResponseToolChoice, { type: 'allowed_tools' }>
}

/** To whom it goes: what can be honoured depends on it. */
type Recipient = Pick<RunningGateway, 'provider' | 'release' | 'model'>

const refuse = (param: string, why: string) => new AppError('invalid', `${param}: ${why}`, { param })

/** What would change the answer or bound it, and cannot be honoured. `isMeant` tells from the neutral value. */
const refused: [keyof CreateResponse, isMeant: (value: unknown) => boolean, why: string][] = [
  ['background', (value) => value === true, 'an agent answers while you wait; only false is taken.'],
  ['max_tool_calls', () => true, 'an agent’s calls of tools cannot be limited.'],
  ['presence_penalty', (value) => value !== 0, 'an agent’s model is not told it; only 0 is taken.'],
  ['frequency_penalty', (value) => value !== 0, 'an agent’s model is not told it; only 0 is taken.'],
  ['top_logprobs', (value) => value !== 0, 'an agent does not tell probabilities; only 0 is taken.'],
  ['conversation', () => true, 'the session in the path is the conversation.'],
  ['prompt', () => true, 'there are no stored prompts.'],
  ['context_management', () => true, 'an agent shortens its own conversation.'],
]

function readTools(tools: CreateResponse['tools'], isParallel: boolean): ResponseTool[] {
  const names = new Set<string>()
  if (!isParallel && tools?.length) {
    throw refuse('parallel_tool_calls', 'an agent cannot be kept from calling several tools at once.')
  }
  return (tools ?? []).map(({ type, name, description, parameters, strict }, at) => {
    if (type !== 'function') {
      throw refuse(`tools.${at}.type`, 'only "function" is taken: an agent brings its own tools along.')
    }
    if (name === undefined) throw refuse(`tools.${at}.name`, 'is missing.')
    if (names.has(name)) throw refuse(`tools.${at}.name`, `there are two tools with the name ${name}.`)
    names.add(name)
    const isLoose = strict === false ? false : null
    return { type, name, description: description ?? null, parameters: parameters ?? null, strict: isLoose }
  })
}

function readToolChoice(
  choice: CreateResponse['tool_choice'],
  tools: ResponseTool[],
): Pick<CheckedRequest, 'tools' | 'toolChoice'> & { echo: ResponseToolChoice } {
  const named = (name: string | undefined, param: string) => {
    const tool = tools.find((one) => one.name === name)
    if (!tool) throw refuse(param, `there is no tool ${JSON.stringify(name ?? '')} in tools.`)
    return tool
  }
  const mode = (wanted: 'none' | 'auto' | 'required', among: ResponseTool[]) => {
    if (wanted === 'required' && among.length === 0) throw refuse('tool_choice', '"required" needs tools.')
    return { tools: among, toolChoice: wanted }
  }
  if (typeof choice === 'string') return { ...mode(choice, tools), echo: choice }
  if (!choice) return { ...mode('auto', tools), echo: 'auto' }
  if (choice.type === 'function') {
    const toolChoice = { type: 'function' as const, name: named(choice.name, 'tool_choice.name').name }
    return { tools, toolChoice, echo: toolChoice }
  }
  if (choice.type !== 'allowed_tools') throw refuse('tool_choice.type', 'must be "function" or "allowed_tools".')
  const allowed = (choice.tools ?? []).map(({ name }, at) => named(name, `tool_choice.tools.${at}`))
  const wanted = choice.mode ?? 'auto'
  const echoed = allowed.map(({ name }) => ({ type: 'function' as const, name }))
  return { ...mode(wanted, allowed), echo: { type: 'allowed_tools', mode: wanted, tools: echoed } }
}

/** Throws AppError invalid that names the field which cannot be honoured and says why. */
export function readRequest(body: CreateResponse, { provider, release, model: own }: Recipient): CheckedRequest {
  const unknown = Object.keys(body).find((name) => !responseFields.has(name))
  if (unknown !== undefined) throw refuse(unknown.slice(0, 100), 'is not a field that this endpoint knows.')
  for (const [name, isMeant, why] of refused) {
    const value = body[name] ?? null
    if (value !== null && isMeant(value)) throw refuse(name, why)
  }
  if (body.include?.includes('message.output_text.logprobs')) {
    throw refuse('include', 'an agent does not tell probabilities.')
  }
  const format = body.text?.format?.type ?? 'text'
  if (format !== 'text') throw refuse('text.format', 'an agent answers in text; it cannot be held to a schema.')

  const model = body.model === 'openclaw' ? own : bareModel(body.model)
  const abilities = abilitiesOf(release, provider, model)
  const tools = readTools(body.tools, body.parallel_tool_calls ?? true)
  const choice = readToolChoice(body.tool_choice, tools)
  const items: InputItem[] =
    typeof body.input === 'string'
      ? [{ type: 'message', role: 'user', content: body.input }]
      : body.input.map((item, at) => {
          if (isTaken(item)) return item
          throw refuse(`input.${at}.type`, `an agent takes no ${item.type}.`)
        })
  if (!abilities.images) {
    for (const [at, item] of items.entries()) {
      if (partsOf(item).some(({ type }) => type === 'input_image')) {
        throw refuse(`input.${at}`, `OpenClaw does not show images to the model ${model}.`)
      }
    }
  }
  const sampling = {
    ...(abilities.temperature && typeof body.temperature === 'number' && { temperature: body.temperature }),
    ...(abilities.topP && typeof body.top_p === 'number' && { top_p: body.top_p }),
  }
  const echo: EchoedFields = {
    model: body.model,
    previous_response_id: body.previous_response_id ?? null,
    instructions: body.instructions ?? null,
    metadata: body.metadata ?? {},
    tools,
    tool_choice: choice.echo,
    parallel_tool_calls: true,
    text: { format: { type: 'text' } },
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
    background: false,
    service_tier: 'default',
    safety_identifier: null,
    prompt_cache_key: null,
  }
  return { echo, items, sampling, tools: choice.tools, toolChoice: choice.toolChoice }
}

const taken: ReadonlySet<string> = new Set<InputItem['type']>([
  'message',
  'function_call',
  'function_call_output',
  'reasoning',
  'item_reference',
])
const isTaken = (item: { type: string }): item is InputItem => taken.has(item.type)

/** The parts of an item that has parts. */
function partsOf(item: InputItem): ContentPart[] {
  const content = item.type === 'message' ? item.content : item.type === 'function_call_output' ? item.output : []
  return typeof content === 'string' ? [] : content
}

/** The text of what may be a text or parts. OpenClaw joins parts in the same way. */
const textOf = (content: string | ContentPart[]): string =>
  typeof content === 'string'
    ? content
    : content
        .flatMap((part) => ('text' in part ? [part.text] : part.type === 'refusal' ? [part.refusal] : []))
        .join('\n')

type GatewayPart = { type: 'input_text'; text: string } | { type: 'input_image' | 'input_file'; source: MediaSource }

function readMedia(part: ContentPart, param: string): GatewayPart | null {
  if (part.type === 'input_image') {
    if (part.file_id || !part.image_url)
      throw refuse(param, 'an image must come as image_url; there are no stored files.')
    return { type: 'input_image', source: readImage(part.image_url, `${param}.image_url`) }
  }
  if (part.type === 'input_audio' || part.type === 'input_video') throw refuse(param, `an agent takes no ${part.type}.`)
  if (part.type !== 'input_file') return null
  const { file_data: data, file_url: url, filename } = part
  if (data) return { type: 'input_file', source: readFileData(data, filename ?? undefined, `${param}.file_data`) }
  if (url) return { type: 'input_file', source: readFileUrl(url, `${param}.file_url`) }
  throw refuse(param, 'a file must come as file_data or file_url; there are no stored files.')
}

/** The images and files of a user's message; no other item may carry any. */
function mediaIn(item: InputItem, at: number): GatewayPart[] {
  const name = item.type === 'message' ? 'content' : 'output'
  return partsOf(item).flatMap((part, place) => {
    const param = `input.${at}.${name}.${place}`
    const media = readMedia(part, param)
    if (!media) return []
    if (item.type === 'message' && item.role === 'user') return [media]
    throw refuse(param, 'OpenClaw takes images and files only from a user’s message.')
  })
}

const isTurn = (item: InputItem): boolean =>
  item.type === 'function_call_output' || (item.type === 'message' && item.role === 'user')
const isAgents = (item: InputItem): boolean =>
  item.type === 'function_call' || (item.type === 'message' && item.role === 'assistant')

function gatewayItem(item: InputItem): object[] {
  if (item.type === 'message') return [{ type: 'message', role: item.role, content: textOf(item.content) }]
  if (item.type === 'function_call_output') {
    return [{ type: 'function_call_output', call_id: item.call_id, output: textOf(item.output) }]
  }
  if (item.type !== 'function_call') return []
  const { type, call_id, name, arguments: args } = item
  return [{ type, call_id, name, arguments: args }]
}

/**
 * The items as OpenClaw takes them. It hands on images and files of the last user's message alone, so those of earlier
 * ones go along with it. `offset` is how many of the request's items come before these. Throws AppError invalid or
 * too_large that names what OpenClaw would refuse or lose.
 */
function gatewayInput(items: InputItem[], offset: number): object[] {
  const last = items.findLastIndex(isTurn)
  const turn = items[last]
  if (!turn || items.slice(last).some(isAgents)) {
    throw refuse('input', 'must end with a user’s message or with a function_call_output.')
  }
  const media = items.flatMap((item, at) => mediaIn(item, at + offset))
  if (media.filter((part) => 'source' in part && part.source.type === 'url').length > maxUrlParts) {
    throw refuse('input', `must not name more than ${maxUrlParts} images and files by URL.`)
  }
  if (turn.type === 'function_call_output') {
    if (media.length > 0) throw refuse('input', 'OpenClaw takes no images and files with a function_call_output.')
    return items.flatMap(gatewayItem)
  }
  const { role, content } = turn as MessageItem
  const text = textOf(content)
  if (text.trim() === '' && media.length === 0) throw refuse('input', 'the last user’s message is empty.')
  if (media.length === 0) return items.flatMap(gatewayItem)
  const parts = [...(text === '' ? [] : [{ type: 'input_text', text }]), ...media]
  return items.flatMap((item) => (item === turn ? [{ type: 'message', role, content: parts }] : gatewayItem(item)))
}

/**
 * What OpenClaw is asked for these items of a request, the others being known to its session already. Throws AppError as
 * `gatewayInput`.
 */
export function gatewayRequest(
  { echo, sampling, tools, toolChoice }: CheckedRequest,
  items: InputItem[],
  offset: number,
) {
  const { instructions, max_output_tokens } = echo
  return {
    model: 'openclaw',
    input: gatewayInput(items, offset),
    ...(instructions !== null && { instructions }),
    ...(tools.length > 0 && { tools: tools.map(gatewayTool), tool_choice: toolChoice }),
    ...sampling,
    ...(max_output_tokens !== null && { max_output_tokens }),
  }
}

const gatewayTool = ({ type, name, description, parameters }: ResponseTool) => ({
  type,
  name,
  ...(description !== null && { description }),
  ...(parameters !== null && { parameters }),
})
