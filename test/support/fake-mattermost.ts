import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type WebSocket, WebSocketServer } from 'ws'

type Json = Record<string, unknown>

export interface FakeMattermost {
  url: string
  /** What the bot posted, in order, as last edited. */
  posts: { id: string; text: string }[]
  /** Lets a person write to the bot directly; waits for nobody. */
  write(from: { id: string; name: string }, text: string): void
  /** Whether the bot listens. */
  isListening(): boolean
  close(): Promise<void>
}

/** Mattermost's ids are 26 characters of these. */
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
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const body = chunks.length > 0 ? (JSON.parse(Buffer.concat(chunks).toString()) as Json) : {}
    const { pathname } = new URL(request.url ?? '/', 'http://mattermost.test')
    const known = request.headers.authorization === `Bearer ${token}`
    const found = known ? answer(request.method ?? 'GET', pathname.replace('/api/v4', ''), body) : null
    const status = known ? (found ? 200 : 404) : 401
    const refusal = {
      id: 'api.context.session_expired.app_error',
      message: 'Invalid or expired session',
      status_code: 401,
    }
    response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(found ?? refusal))
  })
  const sockets = new WebSocketServer({ server, path: '/api/v4/websocket' })
  sockets.on('connection', (socket) => {
    socket.on('message', (data) => {
      const { seq, action, data: given } = JSON.parse(String(data)) as { seq: number; action: string; data?: Json }
      if (action !== 'authentication_challenge') return
      if (given?.token !== token) return socket.close()
      listeners.add(socket)
      socket.send(JSON.stringify({ status: 'OK', seq_reply: seq }))
      socket.send(JSON.stringify({ event: 'hello', data: { server_version: '10.0.0' }, seq: 0 }))
    })
    socket.on('close', () => listeners.delete(socket))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))

  let written = 0
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
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
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
