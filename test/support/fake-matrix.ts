import { createServer } from 'node:http'
import { text } from 'node:stream/consumers'
import { listenLocally } from './local-server.ts'

type Json = Record<string, unknown>

export interface FakeMatrix {
  url: string
  /** The bot's user id. */
  userId: string
  /** The messages that the bot sent to the room, in order, with their latest texts. */
  sent: { id: string; text: string }[]
  /** Sends a direct message to the bot as the person. */
  write(text: string): void
  close(): Promise<void>
}

const syncLimitMs = 1000
const room = '!direct:acme.test'
const person = '@dora:acme.test'
const userId = '@bot:acme.test'
const rules = { override: [], content: [], room: [], sender: [], underride: [] }

/** A stand-in for a Matrix homeserver with a bot, a person and their room, without encryption. */
export async function startFakeMatrix(token: string): Promise<FakeMatrix> {
  const sent: FakeMatrix['sent'] = []
  const timeline: Json[] = []
  let arrived = Promise.withResolvers<void>()

  const member = (id: string) => ({
    type: 'm.room.member',
    state_key: id,
    sender: id,
    event_id: `$member-${id.slice(1, 4)}`,
    origin_server_ts: 1,
    content: { membership: 'join', displayname: id.slice(1).split(':')[0] },
  })
  const members = [member(userId), member(person)]

  async function sync(since: string | null): Promise<Json> {
    const from = Number(since ?? 0)
    if (since !== null && timeline.length <= from) {
      const { promise, resolve } = Promise.withResolvers<void>()
      const timer = setTimeout(resolve, syncLimitMs)
      await Promise.race([arrived.promise, promise])
      clearTimeout(timer)
    }
    const first = since === null
    const events = timeline.slice(from)
    const joined = {
      timeline: { events, limited: false, prev_batch: `${from}` },
      state: { events: first ? members : [] },
      summary: { 'm.joined_member_count': 2, 'm.invited_member_count': 0, 'm.heroes': [person] },
    }
    return {
      next_batch: `${timeline.length}`,
      ...(first && { account_data: { events: [{ type: 'm.direct', content: { [person]: [room] } }] } }),
      rooms: { join: first || events.length > 0 ? { [room]: joined } : {} },
    }
  }

  function receive(path: string, content: Json): Json {
    const [, transaction = ''] = /\/send\/[^/]+\/([^/]+)$/.exec(path) ?? []
    const relation = content['m.relates_to'] as Json | undefined
    const replaced = relation?.rel_type === 'm.replace' && sent.find(({ id }) => id === relation.event_id)
    const id = `$${transaction}`
    if (replaced) replaced.text = String((content['m.new_content'] as Json | undefined)?.body)
    else if (content.msgtype !== undefined) sent.push({ id, text: String(content.body) })
    return { event_id: id }
  }

  async function answer(method: string, path: string, query: URLSearchParams, body: Json): Promise<Json | null> {
    if (path.endsWith('/versions')) return { versions: ['v1.1', 'v1.11'] }
    if (path.endsWith('/account/whoami')) return { user_id: userId, device_id: 'DEVICE' }
    if (path.endsWith('/sync')) return sync(query.get('since'))
    if (path.includes('/pushrules')) return { global: rules }
    if (path.endsWith('/filter')) return { filter_id: '1' }
    if (path.endsWith('/joined_rooms')) return { joined_rooms: [room] }
    if (path.endsWith('/joined_members')) return { joined: { [userId]: {}, [person]: {} } }
    if (path.endsWith('/members')) return { chunk: members }
    if (path.includes('/state/m.room.member/')) return { membership: 'join' }
    if (path.includes('/state/')) return null // not encrypted, without a name
    if (path.includes('/account_data/m.direct')) return { [person]: [room] }
    if (method === 'PUT' && path.includes('/send/')) return receive(path, body)
    return {}
  }

  const server = createServer(async (request, response) => {
    const sentBody = await text(request)
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://matrix.test')
    const isAuthorized = request.headers.authorization === `Bearer ${token}` || pathname.endsWith('/versions')
    const path = decodeURIComponent(pathname)
    const params = sentBody === '' ? {} : (JSON.parse(sentBody) as Json)
    const result = isAuthorized ? await answer(request.method ?? 'GET', path, searchParams, params) : null
    const refusal = isAuthorized
      ? { errcode: 'M_NOT_FOUND', error: 'Not found' }
      : { errcode: 'M_UNKNOWN_TOKEN', error: 'Unknown token' }
    response.writeHead(result ? 200 : isAuthorized ? 404 : 401, { 'content-type': 'application/json' })
    response.end(JSON.stringify(result ?? refusal))
  })
  const { url, close } = await listenLocally(server)

  return {
    url,
    userId,
    sent,
    write(text) {
      timeline.push({
        type: 'm.room.message',
        room_id: room,
        sender: person,
        event_id: `$written-${timeline.length}`,
        origin_server_ts: Date.now(),
        content: { msgtype: 'm.text', body: text },
      })
      arrived.resolve()
      arrived = Promise.withResolvers()
    },
    close,
  }
}
