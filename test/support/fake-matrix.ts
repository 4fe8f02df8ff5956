import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'

type Json = Record<string, unknown>

export interface FakeMatrix {
  url: string
  /** The bot's user id. */
  userId: string
  /** What the bot sent to the room, in order, as last edited. */
  sent: { id: string; text: string }[]
  /** Lets the one person that there is write to the bot directly. */
  write(text: string): void
  close(): Promise<void>
}

const syncLimitMs = 1000
const room = '!direct:acme.test'
const person = '@dora:acme.test'
const userId = '@bot:acme.test'
const rules = { override: [], content: [], room: [], sender: [], underride: [] }

/** A stand-in for a Matrix homeserver with a bot, a person, and the room of the two, without encryption. */
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
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const text = Buffer.concat(chunks).toString()
    const { pathname, searchParams } = new URL(request.url ?? '/', 'http://matrix.test')
    const known = request.headers.authorization === `Bearer ${token}` || pathname.endsWith('/versions')
    const path = decodeURIComponent(pathname)
    const given = text === '' ? {} : (JSON.parse(text) as Json)
    const found = known ? await answer(request.method ?? 'GET', path, searchParams, given) : null
    const refusal = { errcode: known ? 'M_NOT_FOUND' : 'M_UNKNOWN_TOKEN', error: known ? 'Not found' : 'Unknown token' }
    response.writeHead(found ? 200 : known ? 404 : 401, { 'content-type': 'application/json' })
    response.end(JSON.stringify(found ?? refusal))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))

  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
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
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
