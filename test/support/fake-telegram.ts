import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { listenLocally } from './local-server.ts'

type Json = Record<string, unknown>

export interface FakeTelegram {
  /** For `channels.telegram.apiRoot`. */
  url: string
  /** The messages that the bot sent, in order, with their latest texts. */
  sent: { chatId: string; text: string }[]
  /** Sends a message to the bot as a person. */
  write(from: { id: number; name: string }, text: string): void
  close(): Promise<void>
}

const pollLimitMs = 1000
const firstMessageId = 1000

/** A stand-in for Telegram's Bot API with one bot and its token. It delivers messages by long polling. */
export async function startFakeTelegram(token: string): Promise<FakeTelegram> {
  const updates: Json[] = []
  const sent: FakeTelegram['sent'] = []
  let arrived = Promise.withResolvers<void>()

  async function poll(offset: number): Promise<Json[]> {
    const pending = () => updates.filter((update) => Number(update.update_id) >= offset)
    if (pending().length === 0) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, pollLimitMs)
      await Promise.race([arrived.promise, promise])
      clearTimeout(timer)
    }
    return pending()
  }

  const bot = { id: 4242, is_bot: true, first_name: 'Test bot', username: 'chowder_test_bot', can_join_groups: true }
  const message = (id: number, chatId: unknown, text: unknown) => ({
    message_id: id,
    date: Math.floor(Date.now() / 1000),
    chat: { id: Number(chatId), type: 'private' },
    from: bot,
    text,
  })

  async function answer(method: string, params: Json): Promise<unknown> {
    if (method === 'getMe') return bot
    if (method === 'getUpdates') return poll(Number(params.offset ?? 0))
    if (method === 'getWebhookInfo') return { url: '', has_custom_certificate: false, pending_update_count: 0 }
    if (method === 'sendMessage') {
      sent.push({ chatId: String(params.chat_id), text: String(params.text) })
      return message(firstMessageId + sent.length - 1, params.chat_id, params.text)
    }
    if (method === 'editMessageText') {
      const edited = sent[Number(params.message_id) - firstMessageId]
      if (edited) edited.text = String(params.text)
      return message(Number(params.message_id), params.chat_id, params.text)
    }
    return true
  }

  const server = createServer(async (request, response) => {
    const sentBody = await text(request)
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://telegram.test')
    const [, bearer = '', method = ''] = /^\/bot([^/]+)\/(\w+)$/.exec(pathname) ?? []
    const isAuthorized = bearer === token
    const params = { ...Object.fromEntries(searchParams), ...parseJson(sentBody) }
    const body = isAuthorized
      ? { ok: true, result: await answer(method, params) }
      : { ok: false, error_code: 401, description: 'Unauthorized' }
    response.writeHead(isAuthorized ? 200 : 401, { 'content-type': 'application/json' }).end(JSON.stringify(body))
  })
  const { url, close } = await listenLocally(server)

  return {
    url,
    sent,
    write({ id, name }, text) {
      const person = { id, is_bot: false, first_name: name }
      updates.push({
        update_id: 9000 + updates.length,
        message: {
          ...message(updates.length + 1, id, text),
          from: person,
          chat: { id, type: 'private', first_name: name },
        },
      })
      arrived.resolve()
      arrived = Promise.withResolvers()
    },
    close,
  }
}

function parseJson(text: string): Json {
  try {
    return JSON.parse(text)
  } catch {
    return {} // calls without parameters have no body
  }
}
