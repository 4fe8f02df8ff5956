import { createServer } from 'node:http'
import { text as readText } from 'node:stream/consumers'
import { type WebSocket, WebSocketServer } from 'ws'
import { listenLocally } from './local-server.ts'

type Json = Record<string, unknown>

export interface FakeMattermost {
  url: string
  /** The posts of the bot, in order, with their latest texts. */
  posts: { id: string; text: string }[]
  /** Sends a direct message to the bot as a person, even when the bot does not listen. */
  write(from: { id: string; name: string }, text: string): void
  /** Whether the bot is connected to the event stream. */
  isListening(): boolean
  close(): Promise<void>
}

/** An id of Mattermost has 26 characters. */
const idOf = (name: string) => name.replace(/[^a-z0-9]/g, '').padEnd(26, '0')

/** A stand-in for a Mattermost server with one bot: the calls and the event stream that OpenClaw's plugin uses. */
export async function startFakeMattermost(token: string): Promise<FakeMattermost> {
  const posts: FakeMattermost['posts'] = []
  const people = new Map<string, Json>()
  const bot = { id: idOf('bot'), username: 'chowder', is_bot: true, update_at: 1 }
  const listeners = new Set<WebSocket>()
  people.set(bot.id, bot)

  function answer(method: string, path: string, body: Json): Json | Json[] | null {
    const [, kind, id = '', rest] = path.split('/')
    if (kind === 'users' && id === 'me' && rest === undefined) return bot
    if (kind === 'users' && rest === undefined) return people.get(id) ?? null
    if (kind === 'users' && rest === 'teams') return []
    if (kind === 'channels' && rest === undefined && method === 'GET') {
      return { id, type: 'D', name: `${bot.id}__${id}`, display_name: '', team_id: '' }
    }
    if (kind === 'channels') return { id: idOf('direct'), type: 'D' }
    if (kind === 'posts' && method === 'POST') {
      posts.push({ id: idOf(`post${posts.length}`), text: String(body.message) })
      return { ...posts.at(-1), channel_id: body.channel_id, message: body.message, user_id: bot.id }
    }
    if (kind === 'posts' && method === 'PUT') {
      const edited = posts.find((post) => post.id === id)
      if (edited) edited.text = String(body.message)
      return { id, channel_id: idOf('direct'), message: body.message, user_id: bot.id }
    }
    return {}
  }

  const server = createServer(async (request, response) => {
    const sentBody = await readText(request)
    const body = sentBody === '' ? {} : (JSON.parse(sentBody) as Json)
    const { pathname } = new URL(request.url ?? '/', 'http://mattermost.test')
    const isAuthorized = request.headers.authorization === `Bearer ${token}`
    const result = isAuthorized ? answer(request.method ?? 'GET', pathname.replace('/api/v4', ''), body) : null
    const status = isAuthorized ? (result ? 200 : 404) : 401
    const refusal = {
      id: 'api.context.session_expired.app_error',
      message: 'Invalid or expired session',
      status_code: 401,
    }
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(result ?? refusal))
  })
  const sockets = new WebSocketServer({ server, path: '/api/v4/websocket' })
  sockets.on('connection', (socket) => {
    socket.on('message', (data) => {
      const { seq, action, data: login } = JSON.parse(String(data)) as { seq: number; action: string; data?: Json }
      if (action !== 'authentication_challenge') return
      if (login?.token !== token) return socket.close()
      listeners.add(socket)
      socket.send(JSON.stringify({ status: 'OK', seq_reply: seq }))
      socket.send(JSON.stringify({ event: 'hello', data: { server_version: '10.0.0' }, seq: 0 }))
    })
    socket.on('close', () => listeners.delete(socket))
  })
  const local = await listenLocally(server)

  let written = 0
  return {
    url: local.url,
    posts,
    isListening: () => listeners.size > 0,
    write({ id, name }, text) {
      written += 1
      const person = { id: idOf(id), username: name }
      people.set(person.id, person)
      const channel = idOf(`direct${id}`)
      const post = {
        id: idOf(`in${written}`),
        channel_id: channel,
        user_id: person.id,
        message: text,
        type: '',
        create_at: Date.now(),
      }
      const event = {
        event: 'posted',
        data: { channel_type: 'D', sender_name: `@${name}`, post: JSON.stringify(post) },
        broadcast: { channel_id: channel },
        seq: written,
      }
      for (const socket of listeners) socket.send(JSON.stringify(event))
    },
    async close() {
      for (const socket of sockets.clients) socket.terminate()
      sockets.close()
      await local.close()
    },
  }
}
