import type { ModelProvider } from '#database/schema.ts'
import type { CallCause } from '#database/usage-schema.ts'
import { createFieldReader, type FieldReader } from './json-fields.ts'

/**
 * The origin of a call as its agent reports it: the gateway's key of the session, and the cause. Null means unknown.
 */
interface CallOrigin {
  session: string | null
  cause: CallCause | null
}

/**
 * OpenClaw ends each system prompt with a line about its runtime. Text that people write into the prompt comes before
 * it. A call without such a line has no session.
 */
const beginning = 'Runtime: '
const ownAgent = 'agent:main:'
const maxSessionLength = 512

/** The API's own sessions: those with an id of a caller, and those of one chat completion. */
const ofApi = /^[sc]-[0-9a-f]+$/
/** OpenClaw's names for the channels of the API, of heartbeats and of its own work. */
const noChannel = 'webchat'

/** Parses the runtime line at the end of a system prompt, which is JSON text: a line end is an escape. */
function readOrigin(prompt: string): CallOrigin {
  const at = prompt.lastIndexOf(beginning)
  const [line = ''] = at === -1 ? [] : prompt.slice(at + beginning.length).split(/\\[nr]|"/, 1)
  const field = (name: string) => new RegExp(`(?:^| \\| )${name}=([^|]*?)(?: \\||$)`).exec(line)?.[1]
  const key = field('session') ?? ''
  if (key === '' || key.length > maxSessionLength) return { session: null, cause: null }
  const session = key.startsWith(ownAgent) ? key.slice(ownAgent.length) : key
  return { session, cause: causeOf(session, field('channel')) }
}

/** In the session `main` the API, a heartbeat and OpenClaw itself cannot be distinguished, so the cause is unknown. */
function causeOf(session: string, channel?: string): CallCause | null {
  if (/^(?:agent:[^:]+:)?cron:/.test(session)) return 'cron'
  if (/^(?:agent:[^:]+:)?subagent:/.test(session)) return 'subagent'
  if (ofApi.test(session)) return 'api'
  return channel === undefined || channel === noChannel ? null : 'channel'
}

/** The parsed facts of a request so far. */
export interface ParsedRequest extends CallOrigin {
  /** The requested model; null if it is unknown. */
  model: string | null
  /** The largest number of tokens that the answer may have; null if the request does not say. */
  maxOutput: number | null
  isStreamed: boolean
  /** Whether it continues a conversation that the vendor stores. */
  isContinuation: boolean
  /** Whether the vendor is to work on after it has answered. */
  isBackground: boolean
  /** A tool that runs at the vendor and reaches other hosts from there; null without one. */
  vendorTool: string | null
}

export interface RequestReader extends Pick<FieldReader, 'read'> {
  result(): ParsedRequest
}

/** The paths of the system prompt. OpenAI's may be the first item of the input. */
const prompts: Record<ModelProvider, string[]> = {
  anthropic: ['system'],
  openai: ['instructions', 'input.0.content'],
  gemini: ['systemInstruction'],
}
const firstRole = 'input.0.role'

/** The fields that limit the output. */
const limits: Record<ModelProvider, string[]> = {
  anthropic: ['max_tokens'],
  openai: ['max_output_tokens', 'max_completion_tokens', 'max_tokens'],
  gemini: ['generationConfig.maxOutputTokens', 'generation_config.max_output_tokens'],
}

/** The types of tools that reach hosts from the vendor, with the dates that vendors append. */
const reachingTool = /^(?:web_search|web_fetch|mcp)/
const toolType = 'tools.*.type'
/** Fields that hold such tools, or settings of them. */
const reachingFields: Record<ModelProvider, string[]> = {
  anthropic: ['mcp_servers'],
  openai: ['web_search_options'],
  gemini: [
    ...['googleSearch', 'google_search', 'googleSearchRetrieval', 'google_search_retrieval', 'urlContext'],
    ...['url_context', 'googleMaps', 'google_maps', 'mcpServers', 'mcp_servers'],
  ].map((name) => `tools.*.${name}`),
}
const continuations = ['previous_response_id', 'conversation']

/** The model in the path of a call of Gemini. */
const modelInPath = /\/models\/([^/:]+):/

/** Parses the facts of a call as its bytes pass. */
export function createRequestReader(provider: ModelProvider, path: string): RequestReader {
  const [, named = null] = modelInPath.exec(path) ?? []
  const result: ParsedRequest = {
    ...{ model: named, session: null, cause: null, maxOutput: null, vendorTool: null },
    ...{ isStreamed: path.endsWith(':streamGenerateContent'), isContinuation: false, isBackground: false },
  }
  let isOfUser = false
  const reaching = reachingFields[provider]
  const tails = [...prompts[provider], ...reaching, 'conversation']
  function onField(field: string, value: unknown): void {
    if (limits[provider].includes(field)) {
      if (typeof value === 'number') result.maxOutput = Math.max(result.maxOutput ?? 0, value)
    } else if (field === 'stream') result.isStreamed ||= value === true
    else if (field === 'background') result.isBackground ||= value === true
    else if (typeof value !== 'string') return
    else if (field === toolType) result.vendorTool ??= reachingTool.test(value) ? value : null
    else if (reaching.includes(field))
      result.vendorTool ??= value === 'null' ? null : (field.split('.').at(-1) ?? field)
    else if (continuations.includes(field)) result.isContinuation ||= value !== 'null'
    else if (field === 'model') result.model ??= value
    else if (field === firstRole) isOfUser = value === 'user'
    else if (!isOfUser && result.session === null) Object.assign(result, readOrigin(value))
  }
  const fields = createFieldReader(
    [
      'model',
      firstRole,
      'stream',
      'background',
      toolType,
      ...continuations,
      ...limits[provider],
      ...prompts[provider],
      ...reaching,
    ],
    onField,
    tails,
  )
  return { read: fields.read, result: () => result }
}
