import { once } from 'node:events'
import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { json } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'

/** So slow that one sees the words arrive. */
const wordEveryMs = 40

interface Request {
  model?: string
  stream?: boolean
  messages?: { role: string; content: string | { type: string; text?: string }[] }[]
}

// The text that OpenClaw adds around a person's message.
const internalContext = /<<<BEGIN_OPENCLAW_INTERNAL_CONTEXT>>>[\s\S]*?<<<END_OPENCLAW_INTERNAL_CONTEXT>>>/g
const clockStamp = /^\[[A-Z][a-z]{2} \d{4}-\d{2}-\d{2} \d{2}:\d{2}[^\]]*\]\s*/
const runtimeLine = /\n\nRuntime: agent=[^\n]*$/

const unwrap = (text: string) =>
  text.replace(internalContext, '').trim().replace(clockStamp, '').replace(runtimeLine, '').trim()

/** The person's messages in the conversation, oldest first. */
const messagesOf = ({ messages = [] }: Request): string[] =>
  messages
    .filter(({ role }) => role === 'user')
    .map(({ content }) => (typeof content === 'string' ? content : content.map(({ text = '' }) => text).join('\n')))
    .map(unwrap)
    .filter(Boolean)

/** The answer of this model: it repeats the current and the previous message. */
function answerTo(request: Request): string {
  const messages = messagesOf(request).map((text) => `"${text}"`)
  const last = messages.pop() ?? '""'
  return `You said: ${last}; before that you said${messages.length > 0 ? `: ${messages.join(', then ')}` : ' nothing'}.`
}

const tokens = (text: string) => Math.ceil(text.length / 4)

async function stream(response: ServerResponse, message: object, text: string): Promise<void> {
  const send = (type: string, data: object) =>
    response.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...data })}\n\n`)
  response.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' })
  send('message_start', { message: { ...message, content: [], stop_reason: null } })
  send('content_block_start', { index: 0, content_block: { type: 'text', text: '' } })
  for (const word of text.match(/\S+\s*/g) ?? []) {
    if (response.destroyed) return
    send('content_block_delta', { index: 0, delta: { type: 'text_delta', text: word } })
    await sleep(wordEveryMs)
  }
  send('content_block_stop', { index: 0 })
  send('message_delta', {
    delta: { stop_reason: 'end_turn', stop_sequence: null },
    usage: { output_tokens: tokens(text) },
  })
  send('message_stop', {})
  response.end()
}

async function answer(request: Request, response: ServerResponse, serial: number): Promise<void> {
  const text = answerTo(request)
  const message = {
    id: `msg_echo_${serial}`,
    type: 'message',
    role: 'assistant',
    model: request.model ?? 'echo',
    content: [{ type: 'text', text }],
    stop_reason: 'end_turn',
    stop_sequence: null,
    usage: { input_tokens: tokens(JSON.stringify(request)), output_tokens: tokens(text) },
  }
  if (request.stream) return stream(response, message, text)
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(message))
}

/**
 * A stand-in for Anthropic's Messages API, streamed and not, for those who have no account: it understands nothing and
 * repeats the conversation, which shows what an agent remembers. Listens on loopback only and takes any key.
 */
export async function startEchoModel(): Promise<{ url: string; stop(): void }> {
  let serial = 0
  const server = createServer(async (request, response) => {
    try {
      if (request.method !== 'POST' || !request.url?.split('?')[0]?.endsWith('/messages')) {
        response.writeHead(404, { 'content-type': 'application/json' })
        response.end('{"type":"error","error":{"type":"not_found_error","message":"no such route"}}')
        return
      }
      serial += 1
      await answer((await json(request)) as Request, response, serial)
    } catch {
      response.destroy()
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    stop() {
      server.close()
      server.closeAllConnections()
    },
  }
}
