import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, describe, expect, onTestFinished, test, vi } from 'vitest'
import { WebSocket } from 'ws'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { addSessions } from '../../support/fake-sessions.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

/** A stored response of each session. */
const stored = new Map<string, string>()

const everySession = ['main', 'user-1', 'user-1-b', 'user-2', 'other']
const said = { model: 'openclaw', input: 'hello' }
const say = (as: string, session: string) => {
  const path = session === 'main' ? 'responses' : `session/${session}/responses`
  return chowder.call('POST', `/v1/instances/${id}/${path}`, { key: as, body: said })
}
const ask = (as: string, method: 'GET' | 'POST' | 'DELETE', path: string, body?: object) =>
  chowder.call(method, `/v1/instances/${id}/${path}`, {
    key: as,
    headers: { 'x-request-id': 'same' }, // else it would be the difference of two answers
    ...(body && { body }),
  })

async function createKey(scope: object, permissions = ['interact', 'sessions']): Promise<{ id: string; key: string }> {
  const body = { name: 'k', instance_ids: [id], permissions, ...scope }
  const created = await chowder.call('POST', '/v1/keys', { key, body })
  expect(created.status, JSON.stringify(created.body)).toBe(201)
  return { id: created.body.id, key: created.body.raw_key }
}

const createToken = (as: string, body: object) => ask(as, 'POST', 'client_tokens', body)

/** The status of the answer to a WebSocket's request; 101 when it opens. */
const upgradeOf = (as: string, session: string) =>
  new Promise<number>((resolve) => {
    const path = session === 'main' ? 'responses' : `session/${session}/responses`
    const socket = new WebSocket(`${url}/v1/instances/${id}/${path}`, { headers: { authorization: `Bearer ${as}` } })
    socket.on('open', () => {
      socket.close()
      resolve(101)
    })
    socket.on('unexpected-response', (request, response) => {
      request.destroy()
      resolve(response.statusCode ?? 0)
    })
    socket.on('error', () => {})
  })

const gateway = await startFakeGateway({})
const sessions = addSessions(gateway)
const chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
await chowder.startWorker()
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const { key } = await chowder.signUp()
const id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
await until('the instance to run', async () => (await ask(key, 'GET', 'status')).body.status === 'running')
for (const session of everySession) {
  stored.set(session, (await say(key, session)).body.id)
  const fullKey = session === 'main' ? 'agent:main:main' : `agent:main:s-${Buffer.from(session).toString('hex')}`
  sessions.set(fullKey, { sessionId: session, updatedAt: Date.now(), messages: [] })
}
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

test('the usage of a session knows its last end user, by a token or the `user` of a turn', async () => {
  const noted = async () =>
    (await chowder.database.pool.query('SELECT session, end_user FROM session_end_users ORDER BY session')).rows
  await say(key, 'usage-1')
  expect(await noted()).toEqual([])
  const tokenFor = async (endUser: string) =>
    (await createToken(key, { session_prefix: 'usage-', end_user: endUser })).body.client_token as string
  const session = `s-${Buffer.from('usage-1').toString('hex')}`
  await say(await tokenFor('ann'), 'usage-1')
  expect(await noted()).toEqual([{ session, end_user: 'ann' }])
  await say(await tokenFor('b\0ob'), 'usage-1')
  expect(await noted()).toEqual([{ session, end_user: 'bob' }])
  await say(key, 'usage-1')
  expect(await noted()).toEqual([{ session, end_user: 'bob' }])
  const of = (as: string, user: string | null) => ask(as, 'POST', 'session/usage-1/responses', { ...said, user })
  await of(key, 'c\0arl')
  expect(await noted()).toEqual([{ session, end_user: 'carl' }])
  await of(key, null)
  expect(await noted()).toEqual([{ session, end_user: 'carl' }])
  await of(await tokenFor('ann'), 'carl')
  expect(await noted()).toEqual([{ session, end_user: 'ann' }])
})

const noSession = errorBody('session_not_found', 'Session not found.')

/** Which sessions exist for a key, by every call that names one. */
async function sessionsFor(as: string, mayManage: boolean) {
  const seen: Record<string, string[]> = {
    turns: [],
    conversations: [],
    sockets: [],
    responses: [],
    reads: [],
    list: [],
  }
  for (const session of everySession) {
    const turn = await say(as, session)
    if (turn.status === 200) seen.turns?.push(session)
    else expect([turn.status, turn.body]).toEqual([404, errorBody('session_not_found', turn.body.detail)])
    const named = await ask(as, 'POST', 'responses', { ...said, conversation: session })
    expect([named.status, named.body.detail], 'the same as by the path').toEqual([turn.status, turn.body.detail])
    if (named.status === 200) seen.conversations?.push(session)
    if ((await upgradeOf(as, session)) === 101) seen.sockets?.push(session)
    const responseId = stored.get(session)
    const response = await ask(as, 'GET', `responses/${responseId}`)
    if (response.status === 200) seen.responses?.push(session)
    else {
      const unknown = await ask(
        as,
        'GET',
        `responses/${responseId?.replace(/.$/, (last) => (last === '0' ? '1' : '0'))}`,
      )
      expect([response.status, response.body]).toEqual([404, unknown.body])
      for (const [method, path] of [
        ['GET', '/input_items'],
        ['POST', '/cancel'],
        ['DELETE', ''],
      ] as const)
        expect((await ask(as, method, `responses/${responseId}${path}`)).status).toBe(404)
    }
    if (mayManage && (await ask(as, 'GET', `sessions/${session}`)).status === 200) seen.reads?.push(session)
  }
  if (mayManage) seen.list = (await ask(as, 'GET', 'sessions')).body.map((session: { id: string }) => session.id).sort()
  return seen
}

const everywhere = (ids: string[]) => ({
  turns: ids,
  conversations: ids,
  sockets: ids,
  responses: ids,
  reads: ids,
  list: [...ids].sort(),
})

describe('S2: a key that is held to sessions', () => {
  test.each([
    [{ session_ids: ['user-1'] }, ['user-1']],
    [{ session_prefix: 'user-1' }, ['user-1', 'user-1-b']],
    [{ session_ids: ['main'], session_prefix: 'user-2' }, ['main', 'user-2']],
    [{ session_ids: ['other'], session_prefix: 'm' }, ['other']],
    [{}, everySession],
  ])('with %j sees only its own, on every surface', async (scope, ids) => {
    expect(await sessionsFor((await createKey(scope)).key, true)).toEqual(everywhere(ids))
  })

  test('cannot tell a response of another session or instance from an unknown one', async () => {
    const own = await createKey({ session_prefix: 'user-1' })
    const other = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'y' } })).body.id
    const elsewhere = present(stored.get('main')).replace(/.{4}$/, '0000')
    await chowder.database.pool.query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status)
       SELECT $1, organization_id, id, 's-757365722d31', 'completed' FROM instances WHERE id = $2`,
      [elsewhere.slice('resp_'.length), other],
    )
    const continueFrom = async (as: string, previous: string) => {
      const body = { ...said, previous_response_id: previous }
      const { status, body: answer } = await ask(as, 'POST', 'session/user-1/responses', body)
      return { status, answer }
    }
    const unknown = await continueFrom(own.key, `resp_${'0'.repeat(32)}`)
    expect(unknown.answer.error.code).toBe('previous_response_not_found')
    for (const previous of [present(stored.get('user-2')), present(stored.get('main')), elsewhere])
      expect(await continueFrom(own.key, previous)).toEqual(unknown)
    // Of its own sessions, and for a key of the organization, the reason is told.
    for (const [as, previous] of [
      [own.key, 'user-1-b'],
      [key, 'user-2'],
    ] as const) {
      const told = await continueFrom(as, present(stored.get(previous)))
      expect(told.answer.error).toMatchObject({ code: 'previous_response_not_latest' })
    }
  })

  test('reaches no other one by `conversation` in a frame of a WebSocket', async () => {
    const own = await createKey({ session_ids: ['main', 'user-1'] })
    const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/instances/${id}/responses`, {
      headers: { authorization: `Bearer ${own.key}` },
    })
    onTestFinished(() => socket.terminate())
    // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
    const frames: any[] = []
    socket.on('message', (data) => frames.push(JSON.parse(String(data))))
    await new Promise((resolve) => socket.once('open', resolve))
    const endOf = async (conversation: string) => {
      socket.send(JSON.stringify({ type: 'response.create', ...said, conversation }))
      await until('the end', () => /^error$|completed$/.test(frames.at(-1)?.type))
      return frames.pop()
    }
    expect(await endOf('user-2')).toMatchObject({ type: 'error', status: 404, error: { code: 'session_not_found' } })
    expect(await endOf('user-1')).toMatchObject({ response: { conversation: { id: 'user-1' } } })
  })

  test('does not reset or delete another one, which is the same 404 as for one that never was', async () => {
    const own = await createKey({ session_prefix: 'user-1' })
    for (const session of ['user-2', 'main', 'never']) {
      for (const [method, path] of [
        ['GET', `sessions/${session}`],
        ['POST', `sessions/${session}/reset`],
        ['DELETE', `sessions/${session}`],
      ] as const) {
        const { status, body } = await ask(own.key, method, path)
        expect([status, body]).toEqual([404, { ...noSession, detail: body.detail, error: expect.anything() }])
        expect(body.error.code).toBe('session_not_found')
      }
    }
    expect((await ask(key, 'GET', 'sessions/user-2')).status).toBe(200)
  })

  test('has no permission beyond sessions, and is shown with what it is held to', async () => {
    const body = { name: 'k', instance_ids: [id], permissions: ['interact', 'read'], session_ids: ['user-1'] }
    const refused = await chowder.call('POST', '/v1/keys', { key, body })
    expect([refused.status, refused.body]).toEqual([
      400,
      errorBody('invalid_value', refused.body.detail, { param: 'permissions' }),
    ])
    expect(refused.body.detail).toContain('"read" reaches beyond sessions')
    const tooLong = { ...body, permissions: ['interact'], session_ids: ['ü'.repeat(101)] }
    expect((await chowder.call('POST', '/v1/keys', { key, body: tooLong })).body.error.code).toBe('invalid_value')
    const own = await createKey({ session_ids: ['user-1'], session_prefix: 'u' })
    const shown = { session_ids: ['user-1'], session_prefix: 'u' }
    expect((await chowder.call('GET', `/v1/keys/${own.id}`, { key })).body).toMatchObject(shown)
    expect((await chowder.call('GET', '/v1/key', { key: own.key })).body).toMatchObject({ kind: 'scoped', ...shown })
  })
})

test('S2: a key with interact alone talks to every session, and lists, reads, resets and deletes none', async () => {
  const own = await createKey({}, ['interact'])
  expect((await say(own.key, 'user-2')).status).toBe(200)
  for (const [method, path] of [
    ['GET', 'sessions'],
    ['GET', 'sessions/user-2'],
    ['POST', 'sessions/user-2/reset'],
    ['DELETE', 'sessions/user-2'],
  ] as const) {
    const { status, body } = await ask(own.key, method, path)
    expect([status, body?.error?.code]).toEqual([403, 'lacks_permission'])
  }
})

describe('a client token', () => {
  test('talks in its sessions and does nothing else', async () => {
    const { status, body } = await createToken(key, { session_prefix: 'user-1', end_user: 'u1', expires_in: 60 })
    expect([status, body]).toEqual([
      201,
      { client_token: expect.stringMatching(/^chd_ct_v1\.[0-9a-f]{8}\.[\w-]+$/), expires_at: expect.any(String) },
    ])
    const inAMinute = new Date(body.expires_at).getTime() - Date.now()
    expect(inAMinute).toBeGreaterThan(55_000)
    expect(inAMinute).toBeLessThanOrEqual(60_000)
    const token = body.client_token
    const ids = ['user-1', 'user-1-b']
    expect(await sessionsFor(token, false)).toEqual({ ...everywhere(ids), reads: [], list: [] })
    expect((await ask(token, 'POST', 'chat/completions', { model: 'openclaw', messages: [] })).status).not.toBe(403)
    for (const [method, path] of [
      ['GET', 'sessions'],
      ['GET', 'sessions/user-1'],
      ['POST', 'client_tokens'],
      ['GET', 'files'],
      ['GET', 'status'],
      ['POST', 'stop'],
    ] as const) {
      const answer = await ask(token, method, path, path === 'client_tokens' ? { session_ids: ['user-1'] } : undefined)
      expect([path, answer.status]).toEqual([path, 403])
    }
    expect((await chowder.call('GET', '/v1/organization', { key: token })).status).toBe(403)
    expect((await chowder.call('GET', '/v1/key', { key: token })).body).toMatchObject({
      kind: 'client_token',
      permissions: ['interact'],
      instance_ids: [id],
      session_ids: [],
      session_prefix: 'user-1',
      expires_at: body.expires_at,
    })
    const { rows } = await chowder.database.pool.query(`SELECT count(*)::int AS n FROM api_keys WHERE name = 'u1'`)
    expect(rows).toEqual([{ n: 0 }])
  })

  test('expires, and is cut off then', async () => {
    const { body } = await createToken(key, { session_ids: ['user-1'], expires_in: 1 })
    const socket = new WebSocket(`${url}/v1/instances/${id}/session/user-1/responses`, {
      headers: { authorization: `Bearer ${body.client_token}` },
    })
    const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()))
    expect((await say(body.client_token, 'user-1')).status).toBe(200)
    await sleep(1000)
    const late = await say(body.client_token, 'user-1')
    expect([late.status, late.body.error.code]).toEqual([401, 'invalid_api_key'])
    const cutAt = performance.now()
    await closed
    expect(performance.now() - cutAt).toBeLessThan(5000)
  })

  test('F21: lasts as long as it says, whatever the clock of a process says', async () => {
    const clock = (minutes: number) =>
      void vi.useFakeTimers({ toFake: ['Date'], now: performance.timeOrigin + performance.now() + minutes * 60_000 })
    onTestFinished(() => void vi.useRealTimers())
    const [long, short] = [
      (await createToken(key, { session_ids: ['user-1'], expires_in: 300 })).body.client_token,
      (await createToken(key, { session_ids: ['user-1'], expires_in: 1 })).body.client_token,
    ]
    clock(10)
    expect((await say(long, 'user-1')).status, 'with a clock that is ahead').toBe(200)
    const made = (await createToken(key, { session_ids: ['user-1'], expires_in: 60 })).body
    clock(-10)
    await sleep(1000)
    expect((await say(short, 'user-1')).status, 'expired, with a clock that is behind').toBe(401)
    vi.useRealTimers()
    expect(new Date(made.expires_at).getTime() - Date.now()).toBeLessThanOrEqual(60_000)
  })

  test('dies with the key that made it', async () => {
    const backend = await createKey({})
    const { body } = await createToken(backend.key, { session_ids: ['user-1'] })
    expect((await say(body.client_token, 'user-1')).status).toBe(200)
    expect((await chowder.call('DELETE', `/v1/keys/${backend.id}`, { key })).status).toBe(204)
    expect((await say(body.client_token, 'user-1')).status).toBe(401)
  })

  test('is for sessions of the key that makes it, which must be one that may talk', async () => {
    const refusal = async (as: string, wanted: object) => {
      const { status, body } = await createToken(as, wanted)
      return [status, body.error.code]
    }
    const held = await createKey({ session_prefix: 'user-1' })
    expect(await refusal(held.key, { session_ids: ['user-2'] })).toEqual([400, 'invalid_value'])
    expect(await refusal(held.key, { session_prefix: 'user' })).toEqual([400, 'invalid_value'])
    expect((await createToken(held.key, { session_prefix: 'user-1-' })).status).toBe(201)
    expect(await refusal(key, {})).toEqual([400, 'invalid_value'])
    expect(await refusal(key, { session_ids: ['a'], expires_in: 3601 })).toEqual([422, 'validation_failed'])
    const [talks, manages] = [await createKey({}, ['interact']), await createKey({}, ['sessions'])]
    expect((await createToken(talks.key, { session_ids: ['a'] })).status).toBe(201)
    expect(await refusal(manages.key, { session_ids: ['a'] })).toEqual([403, 'lacks_permission'])
  })

  test('that anything was changed in is refused', async () => {
    const { body } = await createToken(key, { session_ids: ['user-1'] })
    const token: string = body.client_token
    for (const at of [8, 20, Math.floor(token.length / 2), token.length - 3]) {
      const other = token[at] === 'A' ? 'B' : 'A'
      expect((await say(token.slice(0, at) + other + token.slice(at + 1), 'user-1')).status, `character ${at}`).toBe(
        401,
      )
    }
    // What is sealed for another place is no token.
    const { rows } = await chowder.database.pool.query('SELECT sealed_token FROM instances WHERE id = $1', [id])
    expect((await say(`chd_ct_${rows[0].sealed_token}`, 'user-1')).status).toBe(401)
  })
})
