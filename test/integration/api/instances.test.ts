import { afterAll, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let key: string
let organizationId: string

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
beforeEach(async () => {
  const organization = await chowder.signUp()
  key = organization.key
  organizationId = organization.id
})
afterAll(() => chowder.close())

const unknown = '01234567-89ab-7def-8123-456789abcdef'
const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, as = key) =>
  chowder.call(method, `/v1/instances${path}`, { key: as, ...(body !== undefined && { body }) })

async function create(fields: object = {}) {
  const { status, body } = await call('POST', '', { name: 'my-assistant', ...fields })
  expect(status).toBe(201)
  return body
}

/** Puts a row into a state as a worker would leave it. */
const states = {
  provisioning: '',
  running: `observed_generation = generation, ready_at = now(), sandbox_id = 'local-x', endpoint = '{"kind":"tcp","host":"127.0.0.1","port":9}'`,
  error: `observed_generation = generation, ready_at = NULL, error_message = 'no luck'`,
  stopped: `observed_generation = generation, ready_at = NULL, desired_state = 'stopped'`,
  terminated: `observed_generation = generation, ready_at = NULL, desired_state = 'terminated', terminated_at = now()`,
}
type State = keyof typeof states

async function createIn(state: State, fields: object = {}): Promise<string> {
  const { id } = await create(fields)
  if (states[state]) await chowder.database.pool.query(`UPDATE instances SET ${states[state]} WHERE id = $1`, [id])
  return id
}

const rowOf = async (id: string) =>
  (await chowder.database.pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0]

/** Settles all due rows again and again, as workers would, so that start and stop return. */
function settleSoon() {
  const timer = setInterval(() => {
    const settled = chowder.database.pool.query(
      `UPDATE instances SET observed_generation = generation, ready_at = CASE desired_state WHEN 'running' THEN now() END
       WHERE observed_generation < generation AND organization_id = '${organizationId}'`,
    )
    settled.catch(() => {}) // by a deadlock with the next one
  }, 50)
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

describe('POST /v1/instances', () => {
  test('returns 201 with the documented object: provisioning, with default values', async () => {
    expect(await create()).toEqual({
      id: expect.stringMatching(/^[0-9a-f-]{36}$/),
      organization_id: organizationId,
      name: 'my-assistant',
      external_id: null,
      status: 'provisioning',
      step: null,
      metadata: {},
      model: null,
      instructions: null,
      model_provider: 'anthropic',
      sandbox_provider: 'sandbox',
      sandbox_id: null,
      gateway_url: null,
      openclaw_version: 'v1',
      openclaw_config: null,
      region: null,
      resources: { memory_mb: null, cpus: null, pids: null, disk_mb: null },
      limits: null,
      stopped_for: null,
      idle_timeout_seconds: null,
      wake_on_request: true,
      wakes_at: null,
      approvals: 'auto',
      isolation: 'one_room',
      egress: null,
      budgets: [],
      error_message: null,
      created_at: expect.stringMatching(/\.\d{6}\+00:00$/),
      updated_at: expect.stringMatching(/\.\d{6}\+00:00$/),
    })
  })

  test('the configuration comes back as it was sent and is sealed at rest', async () => {
    const openclaw_config = {
      'agents.defaults.model.primary': 'anthropic/canary-model',
      agent: { system_prompt: 'hi' },
    }
    const { id, openclaw_config: echoed } = await create({ openclaw_config })
    expect(echoed).toEqual(openclaw_config)
    expect(JSON.stringify(await rowOf(id))).not.toContain('canary')
  })

  test('F22: works while a newer version’s migration adds columns', async () => {
    const { pool } = chowder.database
    await create()
    await pool.query('ALTER TABLE instances ADD COLUMN from_the_future text')
    onTestFinished(async () => void (await pool.query('ALTER TABLE instances DROP COLUMN from_the_future')))
    await create()
  })

  test('the configuration may hold tokens: a scoped key sees it only with `configure`', async () => {
    const openclaw_config = { 'channels.telegram.botToken': 'canary' }
    const { id } = await create({ openclaw_config })
    const seenWith = async (...permissions: string[]) => {
      const body = { name: 'k', instance_ids: [id], permissions }
      const { raw_key } = (await chowder.call('POST', '/v1/keys', { key, body })).body
      const { status, body: seen } = await call('GET', `/${id}`, undefined, raw_key)
      expect([status, seen.id]).toEqual([200, id])
      return seen
    }
    expect((await seenWith('read', 'configure')).openclaw_config).toEqual(openclaw_config)
    const seen = await seenWith('read', 'interact', 'files', 'channels')
    expect(seen.openclaw_config).toBeNull()
    expect(JSON.stringify(seen)).not.toContain('canary')
  })

  test('the instructions come back as they were sent and are sealed at rest', async () => {
    const { id, ...body } = await create({ model: 'anthropic/claude-haiku-4-5', instructions: 'canary' })
    expect(body).toMatchObject({ model: 'anthropic/claude-haiku-4-5', instructions: 'canary', openclaw_config: null })
    expect(JSON.stringify(await rowOf(id))).not.toContain('canary')
    const grant = { name: 'k', instance_ids: [id], permissions: ['read'] }
    const { raw_key } = (await chowder.call('POST', '/v1/keys', { key, body: grant })).body
    expect((await call('GET', `/${id}`, undefined, raw_key)).body.instructions).toBeNull()
  })

  test.each([
    ['a model and its override', { model: 'a', openclaw_config: { 'agents.defaults.model.primary': 'b' } }, 'model'],
    ['a model and its short override', { model: 'a', openclaw_config: { 'agents.defaults.model': 'b' } }, 'model'],
    ['a model and its removal', { model: 'a', openclaw_config: { agents: { defaults: { model: null } } } }, 'model'],
    [
      'instructions and their override',
      { instructions: 'a', openclaw_config: { agent: { system_prompt: 'b' } } },
      'instructions',
    ],
    ['a model of another provider', { model: 'openai/gpt-4o' }, 'anthropic'],
    ['openclaw as the model', { model: 'openclaw' }, 'openclaw'],
  ])('%s is a 400 that says so, at create and at PATCH', async (_what, fields, named) => {
    const refused = await call('POST', '', { name: 'x', ...fields })
    expect([refused.status, refused.body.detail]).toEqual([400, expect.stringContaining(named)])
    expect((await call('GET', '')).body).toEqual([])
    const id = await createIn('stopped')
    const before = await rowOf(id)
    expect(await call('PATCH', `/${id}`, fields)).toMatchObject({ status: 400, body: { detail: refused.body.detail } })
    expect(await rowOf(id)).toEqual(before)
  })

  test('a model and an override that are stored exclude each other, and one call exchanges them', async () => {
    const id = await createIn('stopped', { model: 'one', instructions: 'x' })
    const openclaw_config = { 'agents.defaults.model': 'two', 'agent.system_prompt': 'y' }
    expect((await call('PATCH', `/${id}`, { openclaw_config })).status).toBe(400)
    const moved = await call('PATCH', `/${id}`, { openclaw_config, model: null, instructions: null })
    expect([moved.status, moved.body.model, moved.body.openclaw_config]).toEqual([200, null, openclaw_config])
    expect((await call('PATCH', `/${id}`, { model: 'one' })).status).toBe(400)
    const back = await call('PATCH', `/${id}`, { openclaw_config: null, model: 'one' })
    expect([back.status, back.body.model, back.body.openclaw_config]).toEqual([200, 'one', null])
  })

  test('a model goes with overrides of what belongs to it', async () => {
    const openclaw_config = { 'agents.defaults.model.fallbacks': ['anthropic/other'] }
    expect((await create({ model: 'one', openclaw_config })).model).toBe('one')
  })

  test('with wait, it returns the instance as soon as it runs or cannot, also when it is replayed', async () => {
    using _worker = settleSoon()
    const create = () =>
      chowder.call('POST', '/v1/instances?wait=20', { key, body: { name: 'x' }, headers: { 'idempotency-key': 'w' } })
    const first = await create()
    expect([first.status, first.body.status]).toEqual([201, 'running'])
    await chowder.database.pool.query(`UPDATE instances SET ${states.error} WHERE id = $1`, [first.body.id])
    const again = await create()
    expect([again.status, again.body.id, again.body.status]).toEqual([201, first.body.id, 'error'])
  })

  test('with wait, it returns a provisioning instance at the end of the wait', async () => {
    const { status, body } = await call('POST', '?wait=1', { name: 'x' })
    expect([status, body.status]).toEqual([201, 'provisioning'])
    expect((await call('POST', '?wait=61', { name: 'x' })).status).toBe(422)
  })

  test.each([
    ['no name', { name: undefined }, 'name'],
    ['an empty name', { name: '' }, 'name'],
    ['an unknown provider', { model_provider: 'mistral' }, 'model_provider'],
    ['another sandbox provider', { sandbox_provider: 'vm' }, 'sandbox_provider'],
    ['a region that is no name', { region: '' }, 'region'],
    ['a configuration that is no object', { openclaw_config: 'x' }, 'openclaw_config'],
    ['an unknown field', { flavour: 'x' }, 'flavour'],
    ['a field that is Chowder’s to set', { status: 'running' }, 'status'],
    ['another organization', { organization_id: unknown }, 'organization_id'],
  ])('%s is a 422 naming the field', async (_what, fields, field) => {
    const { status, body } = await call('POST', '', { name: 'x', ...fields })
    expect(status).toBe(422)
    expect(body.detail.map((fault: { loc: string[] }) => fault.loc[1])).toContain(field)
    expect((await call('GET', '')).body.every(({ name }: { name: string }) => name !== 'refused')).toBe(true)
  })

  test('an unknown openclaw_version is a 400 that lists the known ones', async () => {
    const { status, body } = await call('POST', '', { name: 'x', openclaw_version: 'v0' })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('Use one of: v1')])
  })

  test('an organization without a key for the provider gets a 400 that says how to set one', async () => {
    const { status, body } = await call('POST', '', { name: 'x', model_provider: 'openai' })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('model_api_keys.openai')])
    expect((await chowder.call('GET', '/v1/organization', { key })).body.instance_count).toBe(0)
  })

  test.each([
    'gateway.port',
    'plugins',
    'env.vars',
    'auth',
    'secrets.x',
    'update',
    'discovery',
    'models',
    'models.providers.x',
    'agents',
    'agents.defaults.workspace',
    'agents.entries.main.workspace',
    'agents.entries.main.agentDir',
    'session.store',
    'logging.file',
    '__proto__.x',
    'a.constructor.b',
  ])('the override %s is refused with a 400 that names it', async (path) => {
    const { status, body } = await call('POST', '', { name: 'x', openclaw_config: { [path]: 'x' } })
    expect([status, body.detail]).toEqual([400, expect.stringContaining(path.split('.')[0] as string)])
  })

  test.each([
    [{ nonsense: 1 }, 'OpenClaw refused the configuration: invalid config: <root>: Unrecognized key: "nonsense"'],
    [{ 'session.dmScope': 'x' }, 'session.dmScope: Invalid option: expected one of "main"|'],
    [{ 'agents.defaults.model': 'openai/gpt-4o' }, 'This instance uses anthropic: openai/gpt-4o is no model'],
    [{ 'agents.defaults.model': 'google/gemini-2.0-flash' }, 'This instance uses anthropic'],
  ])('the configuration %j, with which no agent could work, is a 400 at once', async (openclaw_config, words) => {
    const { status, body } = await call('POST', '', { name: 'refused', openclaw_config })
    expect([status, body.detail]).toEqual([400, expect.stringContaining(words)])
    expect((await call('GET', '')).body.every(({ name }: { name: string }) => name !== 'refused')).toBe(true)
  })

  test.each([
    ['nested 5,000 levels deep', `{"a":${'['.repeat(5000)}${']'.repeat(5000)}}`],
    ['with one key of 32,000 dots over 32,000 items', `{"x":{"${'.'.repeat(32_000)}":[${'1,'.repeat(31_999)}1]}}`],
    ['with 60,000 brackets for a path', `{"${'a['.repeat(60_000)}":1}`],
  ])('A16: a configuration %s is a short 400 at once', async (_what, config) => {
    const startedAt = performance.now()
    const { status, body } = await call('POST', '', `{"name":"x","openclaw_config":${config}}`)
    expect([status, JSON.stringify(body.detail).length < 600]).toEqual([400, true])
    expect(performance.now() - startedAt).toBeLessThan(10_000)
  })

  test.each(['/v1/instances/%ff', '/v1/instances/%', `/v1/instances/${'a'.repeat(1025)}`])(
    'a path that cannot be routed gets the 404 of an unknown id (%#)',
    async (url) => {
      const { status, body } = await chowder.call('GET', url, { key })
      const message = expect.stringContaining('is no id of an instance')
      expect([status, body]).toEqual([404, errorBody('instance_not_found', 'Instance not found.', { message })])
    },
  )

  test('a path whose later part cannot be read is a 400 that does not speak of the instance', async () => {
    const id = await createIn('running')
    const { status, body } = await call('POST', `/${id}/session/%ff/responses`, { model: 'openclaw', input: 'hi' })
    expect([status, body.error.code]).toEqual([400, 'malformed_request'])
  })

  test.each(['/', '//start', '/$ID', '/undefined'])('the id in %j is said to be none', async (path) => {
    const { status, body } = await call(path.endsWith('start') ? 'POST' : 'GET', path)
    const message = expect.stringMatching(/^Instance not found\. ".*" is no id .* Is a variable empty\?$/)
    expect([status, body]).toEqual([404, errorBody('instance_not_found', 'Instance not found.', { message })])
  })

  test('a 422 lists at most 20 faults', async () => {
    const body = Object.fromEntries(Array.from({ length: 500 }, (_, index) => [`unknown${index}`, 1]))
    const answer = await call('POST', '', body)
    expect([answer.status, answer.body.detail.length]).toEqual([422, 20])
  })

  test('without a key, the response is a 401', async () => {
    expect((await chowder.call('POST', '/v1/instances', { body: { name: 'x' } })).status).toBe(401)
  })

  test('over the limit, the response is the documented 402; a delete frees a place at once', async () => {
    await chowder.database.pool.query('UPDATE organizations SET instance_limit = 2 WHERE id = $1', [organizationId])
    const first = await create()
    await create()
    const refused = await call('POST', '', { name: 'x' })
    expect([refused.status, refused.body]).toEqual([
      402,
      errorBody(
        'instance_limit_reached',
        'Instance limit reached (2/2). Upgrade your subscription. This server sells no subscriptions. ' +
          `Its operator raises the limit with npm run admin -- set-limit ${organizationId} <number>.`,
      ),
    ])
    await call('DELETE', `/${first.id}`)
    await create()
  })

  test('I3: of 60 concurrent creates under a limit of 10, exactly 10 are accepted', async () => {
    await chowder.database.pool.query('UPDATE organizations SET instance_limit = 10 WHERE id = $1', [organizationId])
    const answers = await Promise.all(Array.from({ length: 60 }, () => call('POST', '', { name: 'x' })))
    const count = (status: number) => answers.filter((answer) => answer.status === status).length
    expect([count(201), count(402)]).toEqual([10, 50])
    expect((await chowder.call('GET', '/v1/organization', { key })).body.instance_count).toBe(10)
  })
})

describe('a client that leaves before the response', () => {
  let url: string
  beforeAll(async () => {
    url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
  })

  /**
   * Holds the request up at the organization's row until its client has left, and returns how often it enqueues.
   */
  async function sendAndLeave(
    method: 'POST' | 'DELETE',
    path: string,
    headers: Record<string, string>,
  ): Promise<number> {
    const enqueue = vi.spyOn(chowder.queue, 'enqueue')
    onTestFinished(() => enqueue.mockRestore())
    const responseClosed = new Promise((resolve) => {
      chowder.app.server.once('request', (_request, response) => response.once('close', resolve))
    })
    const { pool } = chowder.database
    const holder = await pool.connect()
    await holder.query('BEGIN')
    const locked = await holder.query('SELECT pg_backend_pid() AS pid FROM organizations WHERE id = $1 FOR UPDATE', [
      organizationId,
    ])
    const client = new AbortController()
    const response = fetch(`${url}/v1/instances${path}`, {
      method,
      headers: { authorization: `Bearer ${key}`, ...headers },
      ...(method === 'POST' && { body: JSON.stringify({ name: 'my-assistant' }) }),
      signal: client.signal,
    })
    await until('the request to wait for the row', async () => {
      // By who blocks whom: other tests wait for locks of the same server.
      const { rows } = await pool.query('SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid))', [
        locked.rows[0].pid,
      ])
      return rows.length > 0
    })
    client.abort()
    await expect(response).rejects.toThrow()
    await responseClosed
    expect(enqueue).not.toHaveBeenCalled()
    await holder.query('COMMIT')
    holder.release()
    await until('the job to be enqueued', async () => enqueue.mock.calls.length > 0)
    return enqueue.mock.calls.length
  }

  test.each([
    ['', {}],
    [' with an Idempotency-Key', { 'idempotency-key': 'left' }],
  ])('gets its instance enqueued%s', async (_with, headers) => {
    const enqueued = await sendAndLeave('POST', '', { 'content-type': 'application/json', ...headers })
    const { body } = await call('GET', '')
    expect(body).toHaveLength(1)
    expect(enqueued).toBe(1)
  })

  test('gets its delete enqueued', async () => {
    const id = await createIn('running')
    expect(await sendAndLeave('DELETE', `/${id}`, {})).toBe(1)
    expect((await rowOf(id)).desired_state).toBe('terminated')
  })
})

test('a replayed create enqueues nothing', async () => {
  const enqueue = vi.spyOn(chowder.queue, 'enqueue')
  onTestFinished(() => enqueue.mockRestore())
  const repeat = () =>
    chowder.call('POST', '/v1/instances', {
      key,
      body: { name: 'my-assistant' },
      headers: { 'idempotency-key': 'repeated' },
    })
  const { body } = await repeat()
  expect((await repeat()).body).toEqual(body)
  expect(enqueue).toHaveBeenCalledOnce()
})

describe('GET /v1/instances', () => {
  test('lists the organization’s own instances that are not terminated, newest first', async () => {
    const [first, second] = [await createIn('running'), await createIn('stopped')]
    await createIn('terminated')
    const other = await chowder.signUp()
    await call('POST', '', { name: 'theirs' }, other.key)
    const { status, body } = await call('GET', '')
    expect([status, body.map((instance: { id: string }) => instance.id)]).toEqual([200, [second, first]])
  })

  test('without a key, the response is a 401', async () => {
    expect((await chowder.call('GET', '/v1/instances')).status).toBe(401)
  })
})

describe('reading one instance', () => {
  test.each([
    ['provisioning', null, null],
    ['running', 'gateway', null],
    ['error', null, 'no luck'],
    ['stopped', null, null],
    ['terminated', null, null],
  ] as const)('status, gateway_url and error_message of a %s one are the truth', async (state, url, error) => {
    const id = await createIn(state)
    const gateway_url = url && `http://chowder.test/v1/instances/${id}`
    expect((await call('GET', `/${id}`)).body).toMatchObject({ status: state, gateway_url, error_message: error })
    expect((await call('GET', `/${id}/status`)).body).toEqual({ id, status: state, step: null, gateway_url })
  })

  test('gateway_url stays while the instance is stopped', async () => {
    const id = await createIn('running')
    await chowder.database.pool.query(`UPDATE instances SET ${states.stopped} WHERE id = $1`, [id])
    expect((await call('GET', `/${id}`)).body.gateway_url).toBe(`http://chowder.test/v1/instances/${id}`)
  })

  test('a terminated instance can be read for 30 days, then it is unknown', async () => {
    const id = await createIn('terminated')
    await chowder.database.pool.query(`UPDATE instances SET terminated_at = now() - interval '29 days' WHERE id = $1`, [
      id,
    ])
    expect((await call('GET', `/${id}`)).status).toBe(200)
    await chowder.database.pool.query(`UPDATE instances SET terminated_at = now() - interval '31 days' WHERE id = $1`, [
      id,
    ])
    expect((await call('GET', `/${id}`)).status).toBe(404)
  })
})

describe('another organization’s instance, an unknown and a malformed id', () => {
  test.each([
    ['GET', ''],
    ['GET', '/status'],
    ['PATCH', ''],
    ['DELETE', ''],
    ['POST', '/start'],
    ['POST', '/stop'],
    ['POST', '/restart'],
    ['POST', '/responses'],
    ['POST', '/session/a/responses'],
  ] as const)('%s %s answers the same 404, whose message tells which text cannot be an id', async (method, path) => {
    const id = await createIn('running')
    const stranger = await chowder.signUp()
    const body = path.endsWith('responses')
      ? { model: 'openclaw', input: 'hi' }
      : method === 'PATCH'
        ? { name: 'x' }
        : undefined
    for (const asked of [id, unknown, 'nonsense', '..%2f', `${id}'`]) {
      const { status, body: answer } = await call(method, `/${asked}${path}`, body, stranger.key)
      const message = [id, unknown].includes(asked) ? undefined : expect.stringContaining('is no id of an instance')
      expect([status, answer]).toEqual([404, errorBody('instance_not_found', 'Instance not found.', { message })])
    }
    expect((await call('GET', `/${id}`)).body.status).toBe('running')
  })

  test('are not mixed up when two organizations poll for the same ids at the same moment', async () => {
    const id = await createIn('running')
    const stranger = await chowder.signUp()
    const polls = Array.from({ length: 40 }, (_, index) =>
      call('GET', `/${id}/status`, undefined, index % 2 ? key : stranger.key),
    )
    const statuses = (await Promise.all(polls)).map(({ status }) => status)
    expect(statuses).toEqual(Array.from({ length: 40 }, (_, index) => (index % 2 ? 200 : 404)))
  })

  test.each([
    ['GET', ''],
    ['GET', '/status'],
    ['PATCH', ''],
    ['DELETE', ''],
    ['POST', '/start'],
    ['POST', '/stop'],
    ['POST', '/responses'],
    ['POST', '/session/a/responses'],
  ] as const)('%s %s without a key is a 401, before anything else', async (method, path) => {
    const { status } = await chowder.call(method, `/v1/instances/${unknown}${path}`)
    expect(status).toBe(401)
  })
})

describe('start and stop', () => {
  test.each([
    ['start', 'stopped', 'running'],
    ['start', 'error', 'running'],
    ['stop', 'running', 'stopped'],
  ] as const)('%s from %s waits and answers 200 with a %s object', async (action, from, to) => {
    const id = await createIn(from)
    using _worker = settleSoon()
    const { status, body } = await call('POST', `/${id}/${action}`)
    expect([status, body.status]).toEqual([200, to])
  })

  test.each([
    ['start', 'running'],
    ['start', 'provisioning'],
    ['start', 'terminated'],
    ['stop', 'stopped'],
    ['stop', 'provisioning'],
    ['stop', 'error'],
    ['stop', 'terminated'],
    ['restart', 'stopped'],
    ['restart', 'error'],
    ['restart', 'terminated'],
  ] as const)('%s from %s is a 409 that names the status and changes nothing', async (action, from) => {
    const id = await createIn(from)
    const before = await rowOf(id)
    const { status, body } = await call('POST', `/${id}/${action}`)
    expect([status, body.detail]).toEqual([409, expect.stringContaining(from)])
    expect(await rowOf(id)).toEqual(before)
  })

  test('a restart returns a provisioning one at once, and takes no messages from then on', async () => {
    const id = await createIn('running')
    const { status, body } = await call('POST', `/${id}/restart`)
    expect([status, body.status, body.gateway_url]).toEqual([200, 'provisioning', expect.any(String)])
    expect((await call('POST', `/${id}/responses`, { model: 'openclaw', input: 'x' })).status).toBe(409)
    const before = await rowOf(id)
    expect((await call('POST', `/${id}/restart`)).body).toEqual(body)
    expect(await rowOf(id)).toEqual(before)
    const { body: events } = await call('GET', `/${id}/events`)
    expect(events[0]).toMatchObject({ type: 'instance.restart', from_status: 'running', to_status: 'provisioning' })
  })

  test('a restart with wait returns what it came to', async () => {
    const id = await createIn('running')
    using _worker = settleSoon()
    expect((await call('POST', `/${id}/restart?wait=20`)).body.status).toBe('running')
  })

  test('a restart of a stopped one says to start it', async () => {
    const { body } = await call('POST', `/${await createIn('stopped')}/restart`)
    expect(body.detail).toBe('An instance that is stopped cannot be restarted. Start it instead.')
  })

  test('a start that ends in error returns 200 with that object: the row is settled', async () => {
    const id = await createIn('stopped')
    const answering = call('POST', `/${id}/start`)
    await until('the intent', async () => (await rowOf(id)).generation === 2)
    await chowder.database.pool.query(`UPDATE instances SET ${states.error} WHERE id = $1`, [id])
    const { status, body } = await answering
    expect([status, body.status, body.error_message]).toEqual([200, 'error', 'no luck'])
  })

  test('a new intent has all attempts again, begins at once, and drops the former error message', async () => {
    const id = await createIn('error')
    await chowder.database.pool.query(
      `UPDATE instances SET attempts = 5, next_attempt_at = now() + interval '1 hour' WHERE id = $1`,
      [id],
    )
    using _worker = settleSoon()
    await call('POST', `/${id}/start`)
    const row = await rowOf(id)
    expect([row.attempts, row.error_message, row.generation]).toEqual([0, null, 2])
    expect(row.next_attempt_at.getTime()).toBeLessThanOrEqual(Date.now())
  })

  test('the body may be left out, or empty with a JSON content type; an unknown field is a 422', async () => {
    const id = await createIn('running')
    using _worker = settleSoon()
    const send = (action: string, payload: string) =>
      chowder.app.inject({
        method: 'POST',
        url: `/v1/instances/${id}/${action}`,
        headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
        payload,
      })
    expect((await send('stop', '{"force": true}')).statusCode).toBe(422)
    expect((await send('stop', '')).statusCode).toBe(200)
    expect((await send('start', '{}')).statusCode).toBe(200)
  })
})

describe('DELETE /v1/instances/{id}', () => {
  test.each(['provisioning', 'running', 'error', 'stopped'] as const)(
    'a %s instance is terminated once the 204 is sent: its place is free, other calls are a 409',
    async (state) => {
      const id = await createIn(state)
      const { status, body } = await call('DELETE', `/${id}`)
      expect([status, body]).toEqual([204, undefined])
      expect((await call('GET', `/${id}`)).body).toMatchObject({ status: 'terminated', gateway_url: null })
      expect((await chowder.call('GET', '/v1/organization', { key })).body.instance_count).toBe(0)
      const refusals = await Promise.all([
        call('PATCH', `/${id}`, { name: 'x' }),
        call('PATCH', `/${id}`, { openclaw_config: {} }),
        call('POST', `/${id}/start`),
        call('POST', `/${id}/stop`),
        call('POST', `/${id}/responses`, { model: 'openclaw', input: 'x' }),
      ])
      expect(refusals.map((refusal) => refusal.status)).toEqual([409, 409, 409, 409, 409])
    },
  )

  test('a second delete is a 204 again and lowers no counter', async () => {
    await create()
    const { id } = await create()
    await Promise.all(Array.from({ length: 5 }, () => call('DELETE', `/${id}`)))
    expect((await call('DELETE', `/${id}`)).status).toBe(204)
    expect((await chowder.call('GET', '/v1/organization', { key })).body.instance_count).toBe(1)
  })
})

describe('PATCH /v1/instances/{id} of an instance that does not run', () => {
  test('a label changes nothing else, and the row does not become due', async () => {
    const id = await createIn('running')
    const { status, body } = await call('PATCH', `/${id}`, { metadata: { plan: 'pro' } })
    expect([status, body.metadata, body.status]).toEqual([200, { plan: 'pro' }, 'running'])
    expect((await rowOf(id)).generation).toBe(1)
  })

  test('a rename makes the row of a running agent due, which learns its name, and no other', async () => {
    for (const [state, generation] of [
      ['running', 2],
      ['stopped', 1],
    ] as const) {
      const id = await createIn(state)
      const { status, body } = await call('PATCH', `/${id}`, { name: 'renamed' })
      expect([status, body.name, body.status]).toEqual([200, 'renamed', state])
      expect((await rowOf(id)).generation).toBe(generation)
    }
  })

  test.each(['stopped', 'error'] as const)(
    'the configuration of a settled %s instance is replaced, and the row does not become due',
    async (state) => {
      const id = await createIn(state, { openclaw_config: { 'session.dmScope': 'main', 'tools.toolSearch': true } })
      const { status, body } = await call('PATCH', `/${id}`, { openclaw_config: { 'tools.toolSearch': false } })
      expect([status, body.openclaw_config, body.status]).toEqual([200, { 'tools.toolSearch': false }, state])
      const { generation, observed_generation } = await rowOf(id)
      expect([generation, observed_generation]).toEqual([1, 1])
    },
  )

  test('a start under way does not settle with the former configuration: the generation is raised', async () => {
    const id = await createIn('provisioning')
    expect((await call('PATCH', `/${id}`, { openclaw_config: { 'tools.toolSearch': false } })).status).toBe(200)
    expect((await rowOf(id)).generation).toBe(2)
  })

  test('a start that used up its attempts has all of them again at once; those of a stop stay as they were', async () => {
    for (const [desired, attempts, waits] of [
      ['running', 0, false],
      ['stopped', 5, true],
    ]) {
      const id = await createIn('provisioning')
      await chowder.database.pool.query(
        `UPDATE instances SET desired_state = $2, attempts = 5, next_attempt_at = now() + interval '1 hour' WHERE id = $1`,
        [id, desired],
      )
      expect((await call('PATCH', `/${id}`, { openclaw_config: { 'tools.toolSearch': false } })).status).toBe(200)
      const row = await rowOf(id)
      expect([row.attempts, row.next_attempt_at > new Date()]).toEqual([attempts, waits])
    }
  })

  test.each([
    ['a forbidden path', { openclaw_config: { gateway: { port: 1 } } }, 400],
    ['a forbidden dot path', { openclaw_config: { 'models.providers.x.apiKey': 'y' } }, 400],
    ['a system prompt that is no text', { openclaw_config: { agent: { system_prompt: 7 } } }, 400],
    ['a key that OpenClaw does not know', { openclaw_config: { nonsense: 1 } }, 400],
    ['a model of another provider', { openclaw_config: { 'agents.defaults.model': 'openai/gpt-4o' } }, 400],
    ['an empty name', { name: '' }, 422],
    ['another provider', { model_provider: 'openai' }, 422],
    ['an unknown field', { desired_state: 'running' }, 422],
  ])('%s is refused and changes nothing', async (_what, body, expected) => {
    const id = await createIn('stopped')
    const before = await rowOf(id)
    expect((await call('PATCH', `/${id}`, body)).status).toBe(expected)
    expect(await rowOf(id)).toEqual(before)
  })

  test('an empty patch returns the object unchanged', async () => {
    const id = await createIn('stopped')
    const { status, body } = await call('PATCH', `/${id}`, {})
    expect([status, body.id]).toEqual([200, id])
  })
})

describe('GET /v1/models', () => {
  test('lists the models of every provider, with what they can do and whether there is a key', async () => {
    const { status, body } = await chowder.call('GET', '/v1/models', { key })
    expect([status, body.object]).toEqual([200, 'list'])
    const find = (id: string) => body.data.find((model: { id: string }) => model.id === id)
    expect(find('claude-sonnet-4-6')).toMatchObject({
      object: 'model',
      owned_by: 'anthropic',
      images: true,
      streams: true,
      default: true,
      available: true,
      successor: null,
    })
    expect(find('claude-opus-5')).toMatchObject({ streams: false, default: false, price: { input: 5, output: 25 } })
    expect(find('gpt-4o')).toMatchObject({ owned_by: 'openai', max_output_tokens: 16_384, available: false })
    expect(find('gemini-2.0-flash')).toMatchObject({
      available: false,
      retired_on: '2026-06-01',
      successor: 'gemini-2.5-flash',
    })
  })

  test('of an instance begins with its own model, and has those of its provider', async () => {
    const id = await createIn('stopped', { openclaw_config: { 'agents.defaults.model': 'anthropic/claude-own' } })
    const { data } = (await call('GET', `/${id}/models`)).body
    const ids = data.map((model: { id: string }) => model.id)
    expect(ids.slice(0, 2)).toEqual(['openclaw', 'claude-own'])
    expect(ids).toEqual(expect.arrayContaining(['claude-sonnet-4-6', 'claude-sonnet-4-20250514']))
    expect(ids.some((one: string) => one.startsWith('gpt-'))).toBe(false)
  })
})

describe('POST …/responses of an instance that does not run', () => {
  test.each(['provisioning', 'stopped', 'error'] as const)(
    'a %s instance is a 409 in both formats, not to be retried',
    async (state) => {
      const id = await createIn(state)
      const { status, body, headers } = await call('POST', `/${id}/responses`, { model: 'openclaw', input: 'hi' })
      expect(status).toBe(409)
      const shown = state === 'error' ? 'in the state error' : state
      expect(body.detail).toContain(`The instance is ${shown}, not running.`)
      expect(body).toEqual(errorBody('instance_not_running', body.detail))
      expect(headers['x-should-retry']).toBe('false')
    },
  )
})
