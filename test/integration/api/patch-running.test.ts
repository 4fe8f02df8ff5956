import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { hashRelayToken } from '#instances/gateway/tokens.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

let id: string

const call = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
  chowder.call(method, `/v1/instances${path}`, { key, ...(body !== undefined && { body }) })
const rowOf = async () => (await chowder.database.pool.query('SELECT * FROM instances WHERE id = $1', [id])).rows[0]
const patches = () => gateway.calls.filter(({ method }) => method === 'config.patch').length

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

beforeEach(async () => {
  gateway.behaviour.onCall = () => {}
  id = (await call('POST', '', { name: 'x', openclaw_config: { 'tools.toolSearch': true } })).body.id
  await until('it to run', async () => (await call('GET', `/${id}`)).body.status === 'running')
  gateway.config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
  gateway.calls.length = 0
})

describe('PATCH of a running instance', () => {
  test('is applied without a restart, read back and stored, and replaces the former overrides', async () => {
    const openclaw_config = { 'session.dmScope': 'main', agent: { system_prompt: 'Be brief.' } }
    const { status, body } = await call('PATCH', `/${id}`, { name: 'renamed', openclaw_config })
    expect([status, body.status, body.name, body.openclaw_config]).toEqual([200, 'running', 'renamed', openclaw_config])
    expect(gateway.config).toMatchObject({ session: { dmScope: 'main' }, tools: { toolSearch: false } })
    expect(driver.file(id, 'state/workspace/SOUL.md')).toBe('Be brief.')
    expect(gateway.calls.at(-1)?.method).toBe('config.get')
    const { generation, ready_at } = await rowOf()
    expect([generation, ready_at]).toEqual([3, expect.any(Date)])
    await until('the agent to know its new name', () =>
      driver.file(id, 'state/workspace/IDENTITY.md')?.includes('- **Name:** renamed\n'),
    )
    expect(driver.starts.get(id)).toBe(1)
  })

  test('of the name reaches the agent without a restart, and keeps its edits of other documents', async () => {
    const soul = 'state/workspace/SOUL.md'
    await driver.files(id).write(soul, Buffer.from('I learned.'), { mode: 0o600 }, AbortSignal.timeout(1000))
    expect(driver.file(id, 'state/workspace/IDENTITY.md')).toContain('- **Name:** x\n')
    const { status, body } = await call('PATCH', `/${id}`, { name: 'Ada' })
    expect([status, body.status, body.name]).toEqual([200, 'running', 'Ada'])
    await until('the agent to know its name', () =>
      driver.file(id, 'state/workspace/IDENTITY.md')?.includes('- **Name:** Ada\n'),
    )
    expect([driver.file(id, soul), driver.starts.get(id)]).toEqual(['I learned.', 1])
  })

  test('of the model and the instructions is applied without a restart; null brings the defaults back', async () => {
    const before = structuredClone(gateway.config)
    const { status, body } = await call('PATCH', `/${id}`, { model: 'claude-haiku-4-5', instructions: 'Be brief.' })
    expect([status, body.model, body.instructions]).toEqual([200, 'claude-haiku-4-5', 'Be brief.'])
    expect(gateway.config).toMatchObject({
      agents: { defaults: { model: { primary: 'anthropic/claude-haiku-4-5' } } },
      tools: { toolSearch: true },
    })
    expect(driver.file(id, 'state/workspace/SOUL.md')).toBe('Be brief.')
    const { data } = (await call('GET', `/${id}/models`)).body
    expect(data.map((model: { id: string }) => model.id)).toContain('claude-haiku-4-5')
    await call('PATCH', `/${id}`, { model: null, instructions: null })
    expect(gateway.config?.agents).toEqual(before?.agents)
    expect([driver.file(id, 'state/workspace/SOUL.md'), driver.starts.get(id)]).toEqual([null, 1])
  })

  test('that is refused does not touch the agent', async () => {
    const answers = [
      await call('PATCH', `/${id}`, { model: 'openai/gpt-4o' }),
      await call('PATCH', `/${id}`, { instructions: 'x', openclaw_config: { agent: { system_prompt: 'y' } } }),
    ]
    expect(answers.map(({ status }) => status)).toEqual([400, 400])
    expect([gateway.calls, (await rowOf()).generation]).toEqual([[], 1])
  })

  test('when the system prompt did not change, the agent’s edits of the file are kept', async () => {
    await call('PATCH', `/${id}`, { openclaw_config: { agent: { system_prompt: 'Be brief.' } } })
    const soul = driver.sandboxes.get(id)
    await driver
      .files(id)
      .write('state/workspace/SOUL.md', Buffer.from('I learned.'), { mode: 0o600 }, AbortSignal.timeout(1000))
    await call('PATCH', `/${id}`, {
      openclaw_config: { agent: { system_prompt: 'Be brief.' }, 'session.dmScope': 'main' },
    })
    expect([soul === driver.sandboxes.get(id), driver.file(id, 'state/workspace/SOUL.md')]).toEqual([
      true,
      'I learned.',
    ])
    await call('PATCH', `/${id}`, { openclaw_config: {} })
    expect(driver.file(id, 'state/workspace/SOUL.md')).toBe(null)
  })

  test('a refusal by the gateway is a 400 with its own words, and nothing of the request is stored', async () => {
    const before = (await call('GET', `/${id}`)).body
    gateway.behaviour.onCall = (method) => {
      if (method === 'config.patch')
        throw new Refusal({ code: 'INVALID_REQUEST', message: 'invalid config: its words' })
    }
    const openclaw_config = { 'session.dmScope': 'main' }
    const { status, body } = await call('PATCH', `/${id}`, { name: 'other', openclaw_config })
    expect([status, body.detail]).toEqual([400, expect.stringContaining('invalid config: its words')])
    gateway.behaviour.onCall = () => {}
    expect((await call('GET', `/${id}`)).body).toMatchObject({
      name: before.name,
      openclaw_config: before.openclaw_config,
      status: 'running',
    })
    const { generation, observed_generation } = await rowOf()
    expect(observed_generation).toBe(generation)
  })

  test('a change with an unknown outcome is not stored; a worker restores the stored configuration', async () => {
    gateway.behaviour.onCall = async (method) => {
      if (method !== 'config.patch') return
      gateway.config = { ...gateway.config, session: { dmScope: 'main' } }
      gateway.disconnect() // the patch was applied, and its answer is lost
    }
    const { status, body } = await call('PATCH', `/${id}`, { openclaw_config: { 'session.dmScope': 'main' } })
    expect([502, 504]).toContain(status)
    expect(body.detail.error).toEqual(expect.any(String))
    gateway.behaviour.onCall = () => {}
    await until('a worker to settle it', async () => {
      const { generation, observed_generation } = await rowOf()
      return generation === observed_generation
    })
    expect(gateway.config.session).not.toMatchObject({ dmScope: 'main' })
    expect((await call('GET', `/${id}`)).body).toMatchObject({
      status: 'running',
      openclaw_config: { 'tools.toolSearch': true },
    })
  })

  test('a request that dies half-way leaves the row due; a worker restores the stored configuration', async () => {
    // As after a kill: the lease is taken, the generation raised, the gateway changed, nothing stored.
    gateway.config = { ...gateway.config, session: { dmScope: 'main' } }
    await chowder.database.pool.query(
      `UPDATE instances SET lease_token = lease_token + 1, lease_until = now() + interval '300 ms', generation = generation + 1 WHERE id = $1`,
      [id],
    )
    await until('a worker to settle it', async () => {
      const { generation, observed_generation } = await rowOf()
      return generation === observed_generation
    })
    expect(gateway.config.session).not.toMatchObject({ dmScope: 'main' })
  })

  test('concurrent changes are made one after the other; the last response has the stored values', async () => {
    const answers = await Promise.all(
      ['main', 'per-peer'].map((dmScope) =>
        call('PATCH', `/${id}`, { openclaw_config: { 'session.dmScope': dmScope } }),
      ),
    )
    expect(answers.map(({ status }) => status)).toEqual([200, 200])
    const stored = (await call('GET', `/${id}`)).body.openclaw_config['session.dmScope']
    expect(gateway.config).toMatchObject({ session: { dmScope: stored } })
  })

  test('while another change holds the row, the response is a 409 that says to try again', async () => {
    // With another token: a worker that still holds the row would release this lease with its own.
    await chowder.database.pool.query(
      `UPDATE instances SET lease_token = lease_token + 1, lease_until = now() + interval '1 minute' WHERE id = $1`,
      [id],
    )
    const { status, body } = await call('PATCH', `/${id}`, { openclaw_config: {} })
    expect([status, body.detail]).toEqual([409, expect.stringContaining('Try again')])
    await chowder.database.pool.query(`UPDATE instances SET lease_until = now() WHERE id = $1`, [id])
  })

  test('a delete during the change wins: the change is a 409', async () => {
    gateway.behaviour.onCall = async (method) => {
      if (method === 'config.patch') await call('DELETE', `/${id}`)
    }
    expect((await call('PATCH', `/${id}`, { openclaw_config: { 'session.dmScope': 'main' } })).status).toBe(409)
    gateway.behaviour.onCall = () => {}
    await until('the sandbox to be gone', () => !driver.sandboxes.has(id))
  })
})

describe('a model that is in no table', () => {
  const turn = (model: string) => call('POST', `/${id}/responses`, { model, input: 'hello' })
  const declared = () => {
    const { models } = gateway.config as { models: { providers: { anthropic: { models: Record<string, unknown>[] } } } }
    return models.providers.anthropic.models
  }

  test('is declared to the running gateway by the first turn that asks for it, and stays over a restart', async () => {
    expect((await turn('anthropic/claude-new-1')).status).toBe(200)
    const entry = expect.objectContaining({ id: 'claude-new-1', input: ['text', 'image'], maxTokens: 32_000 })
    expect(declared()).toContainEqual(entry)
    expect([patches(), driver.starts.get(id)]).toEqual([1, 1])
    expect((await turn('claude-new-1')).status).toBe(200)
    expect((await turn('claude-opus-5')).status).toBe(200)
    expect(patches()).toBe(1)
    await call('POST', `/${id}/stop`)
    await call('POST', `/${id}/start`)
    const { models } = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
    expect(models.providers.anthropic.models).toContainEqual(entry)
    const listed = (await call('GET', `/${id}/models`)).body.data
    expect(listed).toContainEqual(expect.objectContaining({ id: 'claude-new-1', images: true, default: false }))
  })

  test('takes the place of the oldest once there are 20', async () => {
    const before = Array.from({ length: 20 }, (_, at) => `claude-old-${at}`)
    await chowder.database.pool.query('UPDATE instances SET unlisted_models = $2 WHERE id = $1', [id, before])
    expect((await turn('claude-new-2')).status).toBe(200)
    expect((await rowOf()).unlisted_models).toEqual([...before.slice(1), 'claude-new-2'])
  })

  test('is not declared for a request that is refused', async () => {
    expect((await call('POST', `/${id}/responses`, { model: 'claude-new-3', input: 'x', prompt: {} })).status).toBe(400)
    expect((await turn('gpt-4o')).body.detail).toContain('This instance uses anthropic')
    expect(patches()).toBe(0)
  })
})

describe('a changed provider key', () => {
  const isSettled = async () => {
    const { generation, observed_generation } = await rowOf()
    return generation === observed_generation
  }
  const configured = () => JSON.stringify(gateway.config)

  test('does not reach the gateway, whose configuration stays as it is', async () => {
    const starts = driver.starts.get(id)
    const { generation } = await rowOf()
    const body = { model_api_keys: { anthropic: 'sk-changed' } }
    await chowder.call('PATCH', '/v1/organization', { key, body })
    await until('a worker to settle it', async () => (await rowOf()).generation > generation && (await isSettled()))
    expect([driver.starts.get(id), (await call('GET', `/${id}`)).body.status]).toEqual([starts, 'running'])
    expect(configured()).not.toContain('sk-')
    expect(configured()).toMatch(/"baseUrl":"http:\/\/127\.0\.0\.1:9\/relay\/anthropic","apiKey":\{"source":"file"/)
    expect(chowder.logged.join('')).not.toContain('sk-changed')
  })

  test('no key is in the gateway: one that has no token of the relay is started again with one', async () => {
    const starts = driver.starts.get(id) ?? 0
    const token = () => JSON.parse(driver.file(id, 'state/secrets.json') ?? '{}').relayToken as string
    const before = token()
    await chowder.database.pool.query(
      'UPDATE instances SET relay_token_hash = NULL, sealed_relay_token = NULL WHERE id = $1',
      [id],
    )
    await until('the gateway to have another token', async () => {
      const { relay_token_hash } = await rowOf()
      return token() !== before && relay_token_hash?.equals(hashRelayToken(token())) && (await isSettled())
    })
    expect(driver.starts.get(id)).toBe(starts + 1)
    expect(chowder.logged.join('')).not.toContain(token())
  })

  test('is used at once: what OpenClaw remembers of a refusal is deleted, then read again', async () => {
    gateway.calls.length = 0
    driver.calls.length = 0
    gateway.methods['models.authRefresh'] = () => ({ refreshed: true })
    await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: 'sk-corrected' } } })
    await until('OpenClaw’s memory to be changed', () =>
      driver.calls.some((made) => made.method === 'exec' && made.id === id),
    )
    await until('the gateway to read it again', () =>
      gateway.calls.some(({ method }) => method === 'models.authRefresh'),
    )
    await until('a worker to settle it', isSettled)
    expect(driver.file(id, 'state/agents/main/agent/settings.json')).toContain('"maxRetries": 1')
  })

  test('is used at once by an agent that is started within ten minutes of the change', async () => {
    gateway.methods['models.authRefresh'] = () => ({ refreshed: true })
    const { pool } = chowder.database
    for (const minutes of [9, 11]) {
      await call('POST', `/${id}/stop`)
      const model_api_keys = { anthropic: `sk-changed-${minutes}-minutes-ago` }
      await chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys } })
      await pool.query('UPDATE provider_keys SET updated_at = now() - make_interval(mins => $1)', [minutes])
      await until('the other agents to have it', async () => {
        const { rows } = await pool.query('SELECT FROM instances WHERE observed_generation < generation')
        return rows.length === 0
      })
      gateway.calls.length = 0
      driver.calls.length = 0
      expect((await call('POST', `/${id}/start`)).body.status).toBe('running')
      const deletes = driver.calls.filter(({ method }) => method === 'exec').map((made) => made.id)
      const calls = gateway.calls.map(({ method }) => method)
      expect([deletes, calls]).toEqual(minutes === 9 ? [[id], ['models.authRefresh']] : [[], []])
    }
  })
})
