import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { type FakeGateway, Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { addSessions, type FakeSessions } from '../../support/fake-sessions.ts'
import { present } from '../../support/present.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'

let gateway: FakeGateway
let sessions: FakeSessions
let chowder: TestChowder
let key: string
let id: string

const call = (method: 'GET' | 'POST' | 'DELETE', path: string, as = key) =>
  chowder.call(method, path.startsWith('/v1') ? path : `/v1/instances/${id}/sessions${path}`, { key: as })
const keyOf = (session: string) =>
  session === 'main' ? 'agent:main:main' : `agent:main:s-${Buffer.from(session).toString('hex')}`
const message = (role: string, content: unknown, timestamp = 1_771_084_800_000) => ({ role, content, timestamp })

let clock = 1_771_084_800_000
function add(fullKey: string, ...messages: object[]) {
  clock += 1000
  sessions.set(fullKey, { sessionId: 'x', updatedAt: clock, messages: messages as Record<string, unknown>[] })
}

beforeAll(async () => {
  gateway = await startFakeGateway({})
  sessions = addSessions(gateway)
  chowder = await openTestChowder({ sandboxes: new FakeDriver() })
  key = (await chowder.signUp()).key
  id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
  await run(id)
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
beforeEach(() => {
  sessions.clear()
  gateway.calls.length = 0
  gateway.behaviour.onCall = () => {}
})

/** Makes an instance run, with the fake gateway as its gateway. */
const run = (instanceId: string) => chowder.markReady(instanceId, gateway.endpoint)

/** Reads all pages by the links to the next one. */
async function readPages(path: string) {
  const pages: Awaited<ReturnType<typeof call>>['body'][] = []
  for (let next: string | undefined = `/v1/instances/${id}/sessions${path}`; next; ) {
    const { status, body, headers } = await call('GET', next)
    expect(status).toBe(200)
    pages.push(body)
    next = /^<http:\/\/chowder\.test(.*)>; rel="next"$/.exec(String(headers.link ?? ''))?.[1]
  }
  return pages
}
const idsOf = (body: { id: string }[]) => body.map((session) => session.id)

describe('GET …/sessions', () => {
  test('lists the sessions of the API by the ids that messages are sent to, the latest change first', async () => {
    for (const session of ['main', 'user-42', 'Grüße 🦞/%', 'agent:main:main'])
      add(keyOf(session), message('user', 'hi'))
    const { status, body } = await call('GET', '')
    expect(status).toBe(200)
    expect(idsOf(body)).toEqual(['agent:main:main', 'Grüße 🦞/%', 'user-42', 'main'])
    expect(body[0]).toEqual({
      id: 'agent:main:main',
      is_active: false,
      total_tokens: 100,
      updated_at: expect.stringMatching(/^2026-02-14T.*\.\d{6}\+00:00$/),
    })
  })

  test('impossible times and sums of a gateway are no error', async () => {
    sessions.set(keyOf('odd'), { sessionId: 'x', updatedAt: 1e20, messages: [message('user', 'hi', 1e20)] })
    const original = present(gateway.methods['sessions.list'])
    gateway.methods['sessions.list'] = async (params) => {
      const answer = (await original(params)) as { sessions: object[] }
      return { ...answer, sessions: answer.sessions.map((session) => ({ ...session, totalTokens: 0.5 })) }
    }
    const { status, body } = await call('GET', '')
    Object.assign(gateway.methods, { 'sessions.list': original })
    expect([status, body]).toEqual([200, [{ id: 'odd', is_active: false, total_tokens: 0, updated_at: null }]])
    expect((await call('GET', '/odd')).body.messages).toEqual([{ role: 'user', content: 'hi', created_at: null }])
  })

  test('offsets in a circle end the list, and a session whose key is not a text is left out', async () => {
    const original = present(gateway.methods['sessions.list'])
    let calls = 0
    const answering = (answer: (offset: number) => Record<string, unknown>) => {
      gateway.methods['sessions.list'] = async ({ offset = 0 }: { offset?: number }) => {
        calls += 1
        return answer(offset)
      }
    }
    try {
      answering(() => ({ sessions: [{ key: { toString: null } }, { key: keyOf('only') }], nextOffset: 0 }))
      const { status, body } = await call('GET', '')
      expect([status, idsOf(body), calls]).toEqual([200, ['only'], 1])
      answering((offset) => ({ sessions: [], nextOffset: offset + 1 }))
      expect((await call('GET', '')).body).toEqual([])
      expect(calls).toBe(21)
    } finally {
      Object.assign(gateway.methods, { 'sessions.list': original })
    }
  })

  test('leaves out the sessions of channels and the agent’s own', async () => {
    for (const other of ['telegram:direct:123', 'cron:x', 'subagent:1', 's-zz', 's-FF', 's-ff', 's-'])
      add(`agent:main:${other}`)
    add('agent:other:main')
    add('global')
    expect((await call('GET', '')).body).toEqual([])
  })

  test('pages hold each session once, however many other sessions lie between', async () => {
    const ids = Array.from({ length: 130 }, (_, i) => `user-${i}`)
    for (const [i, session] of ids.entries()) {
      add(keyOf(session))
      for (let other = 0; other < 2; other += 1) add(`agent:main:telegram:direct:${i}-${other}`)
    }
    const pages = await readPages('?limit=50')
    expect(pages.map((page) => page.length)).toEqual([50, 50, 30])
    expect(pages.flatMap(idsOf)).toEqual(ids.toReversed())
    expect(idsOf((await call('GET', '')).body)).toHaveLength(50)
  })

  test.each(['?limit=0', '?limit=101', '?status=x'])('%s is a 422', async (query) => {
    expect((await call('GET', query)).status).toBe(422)
  })
  test.each(['?cursor=', '?cursor=LTE', '?cursor=MDE', '?cursor=eA', '?cursor=OTk5OTk5OTk5OTk'])(
    'the cursor in %s is a 400',
    async (query) => {
      for (const path of ['', '/main']) expect((await call('GET', `${path}${query}`)).status).toBe(400)
      expect(gateway.calls).toEqual([])
    },
  )
})

describe('GET …/sessions/{session_id}', () => {
  test('returns the messages, without calls of tools, thoughts and markers', async () => {
    add(
      keyOf('user-42'),
      message('system', [{ type: 'text', text: 'Reset' }]),
      message('user', 'Look around.'),
      message('assistant', [
        { type: 'thinking', thinking: 'hm' },
        { type: 'toolCall', id: 't', name: 'exec' },
      ]),
      message('toolResult', [{ type: 'text', text: 'secret output' }]),
      message(
        'assistant',
        [
          { type: 'text', text: 'All' },
          { type: 'text', text: 'well.' },
        ],
        1_771_084_801_500,
      ),
    )
    const { status, body, headers } = await call('GET', '/user-42')
    expect([status, headers.link]).toEqual([200, undefined])
    expect(body).toEqual({
      id: 'user-42',
      is_active: false,
      total_tokens: 500,
      updated_at: expect.any(String),
      messages: [
        { role: 'user', content: 'Look around.', created_at: '2026-02-14T16:00:00.000000+00:00' },
        { role: 'assistant', content: 'All\nwell.', created_at: '2026-02-14T16:00:01.500000+00:00' },
      ],
    })
  })

  test('pages lead from the newest message back to the first', async () => {
    add(keyOf('main'), ...Array.from({ length: 7 }, (_, i) => message(i % 2 ? 'assistant' : 'user', `${i}`)))
    const contents = (await readPages('/main?limit=3')).map(({ messages }) =>
      messages.map(({ content }: { content: string }) => content).join(''),
    )
    expect(contents).toEqual(['456', '123', '0'])
  })

  test('main exists without messages', async () => {
    const { status, body } = await call('GET', '/main')
    expect([status, body]).toEqual([
      200,
      { id: 'main', is_active: false, total_tokens: 0, updated_at: null, messages: [] },
    ])
  })

  test('a key of the gateway used as an id reaches no other session', async () => {
    add('agent:main:telegram:direct:123', message('user', 'private'))
    for (const session of ['agent:main:telegram:direct:123', 'telegram:direct:123', 'MAIN', ' main']) {
      expect((await call('GET', `/${encodeURIComponent(session)}`)).status).toBe(404)
    }
  })
})

describe('POST …/sessions/{session_id}/reset', () => {
  test('deletes the messages, and the session stays', async () => {
    add(keyOf('user-42'), message('user', 'hi'))
    const { status, body } = await call('POST', '/user-42/reset')
    expect([status, body]).toEqual([204, undefined])
    expect((await call('GET', '/user-42')).body.messages).toEqual([])
    expect((await call('POST', '/main/reset')).status).toBe(204)
  })

  test('does not create an unknown session', async () => {
    expect((await call('POST', '/nobody/reset')).status).toBe(404)
    expect(sessions.size).toBe(0)
  })
})

describe('DELETE …/sessions/{session_id}', () => {
  test('deletes the session', async () => {
    add(keyOf('user-42'), message('user', 'hi'))
    add(keyOf('other'))
    expect((await call('DELETE', '/user-42')).status).toBe(204)
    expect(idsOf((await call('GET', '')).body)).toEqual(['other'])
    expect((await call('DELETE', '/user-42')).status).toBe(404)
  })

  test('resets main, which always exists', async () => {
    add(keyOf('main'), message('user', 'hi'))
    expect((await call('DELETE', '/main')).status).toBe(204)
    expect((await call('GET', '/main')).body.messages).toEqual([])
  })
})

const each = [
  ['GET', ''],
  ['GET', '/user-42'],
  ['POST', '/user-42/reset'],
  ['DELETE', '/user-42'],
] as const

describe.each(each)('%s …/sessions%s', (method, path) => {
  test('is a 409 that names the status, without a call of a gateway, while the instance does not run', async () => {
    const other = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
    const { status, body } = await call(method, `/v1/instances/${other}/sessions${path}`)
    expect([status, body.detail]).toEqual([409, 'The instance is provisioning, not running. Wait until it is running.'])
    expect(gateway.calls).toEqual([])
  })

  test('is the same 404 for an instance of another organization and for an unknown one', async () => {
    const theirs = await chowder.signUp()
    for (const instance of [id, '01234567-89ab-7def-8123-456789abcdef', 'nonsense']) {
      const { status, body } = await call(method, `/v1/instances/${instance}/sessions${path}`, theirs.key)
      const message = instance === 'nonsense' ? expect.stringContaining('is no id of an instance') : undefined
      expect([status, body]).toEqual([404, errorBody('instance_not_found', 'Instance not found.', { message })])
    }
  })

  test('needs the permission sessions', async () => {
    const createKey = async (permission: string) =>
      (
        await chowder.call('POST', '/v1/keys', {
          key,
          body: { name: permission, instance_ids: [id], permissions: [permission] },
        })
      ).body.raw_key
    add(keyOf('user-42'), message('user', 'hi'))
    expect((await call(method, path, await createKey('interact'))).status).toBe(403)
    expect((await call(method, path, await createKey('sessions'))).status).toBeOneOf([200, 201, 202, 204])
  })

  test('is the documented 502 when the gateway fails', async () => {
    gateway.behaviour.onCall = (called) => {
      if (called !== 'connect') throw new Refusal({ code: 'UNAVAILABLE', message: 'internal' })
    }
    const { status, body } = await call(method, path)
    expect([status, body.detail.error]).toEqual([502, expect.stringContaining('Gateway unavailable')])
  })
})

test.each(['x'.repeat(201), 'ü'.repeat(101)])('a session id of more than 200 bytes is a 400', async (session) => {
  for (const [method, more] of [
    ['GET', ''],
    ['POST', '/reset'],
    ['DELETE', ''],
  ] as const) {
    expect((await call(method, `/${encodeURIComponent(session)}${more}`)).status).toBe(400)
  }
  expect(gateway.calls).toEqual([])
})
