import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { eraseTerminated } from '#instances/erase.ts'
import { newId } from '#platform/ids.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
await chowder.startWorker()
const { id: organizationId, key } = await chowder.signUp()
const call = (method: 'GET' | 'PATCH' | 'POST', path: string, body?: object, as = key) =>
  chowder.call(method, path, { key: as, ...(body && { body }) })
const id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
await until(
  'the instance to run',
  async () => (await call('GET', `/v1/instances/${id}/status`)).body.status === 'running',
)
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const daily = { name: 'daily', limit: { tokens: 100 }, per: 'day' }
const instancePath = () => `/v1/instances/${id}`
const query = async (text: string, values: unknown[] = []) => (await chowder.database.pool.query(text, values)).rows

/** A call of a model, as a relay writes it. */
const use = (tokens: number, endUser: string | null = null) =>
  query(
    `INSERT INTO model_calls (id, organization_id, instance_id, end_user, provider, began_at, outcome, input_tokens, output_tokens)
     VALUES ($1, $2, $3, $4, 'anthropic', now(), 'answered', $5, 0)`,
    [newId(), organizationId, id, endUser, tokens],
  )
const turn = async (as = key, { session = 'main', ...more }: { session?: string; user?: string } = {}) => {
  const path = session === 'main' ? 'responses' : `session/${session}/responses`
  return call('POST', `${instancePath()}/${path}`, { model: 'openclaw', input: 'hello', ...more }, as)
}
/** The check of turns remembers for a moment that nothing is used up. */
const untilChecked = () => sleep(300)

describe('budgets are set and shown', () => {
  test('of the organization and of an instance, each with its defaults', async () => {
    const shown = {
      ...daily,
      scope: 'total',
      time_zone: 'UTC',
      mode: 'hard',
      unpriced_price: 20,
      used: 0,
      remaining: 100,
      state: 'ok',
    }
    const perUser = { ...daily, name: 'each', scope: 'end_user' }
    const unattended = { name: 'night', limit: { calls: 10 }, per: 'hour', scope: 'unattended' }
    const set = await call('PATCH', '/v1/organization', { budgets: [daily, perUser, unattended] })
    expect(set.body.budgets).toMatchObject([
      shown,
      { ...shown, ...perUser },
      { ...shown, ...unattended, remaining: 10 },
    ])
    expect((await call('GET', '/v1/organization')).body.budgets).toEqual(set.body.budgets)
    expect((await call('PATCH', instancePath(), { budgets: [daily] })).body.budgets).toMatchObject([shown])
    const [listed] = (await call('GET', '/v1/instances')).body
    expect(listed.budgets).toEqual((await call('GET', instancePath())).body.budgets)
    const other = await call('POST', '/v1/instances', { name: 'y', budgets: [daily] })
    expect([other.status, other.body.budgets]).toMatchObject([201, [shown]])
    const berlin = { ...daily, time_zone: 'Europe/Berlin', per: 'month', limit: { usd: 2.5 }, unpriced_price: null }
    const [{ limit, resets_at: resetsAt, unpriced_price: price }] = (
      await call('PATCH', instancePath(), { budgets: [berlin] })
    ).body.budgets
    expect([limit, price]).toEqual([{ usd: 2.5 }, null])
    expect(new Date(resetsAt).toLocaleString('sv-SE', { timeZone: 'Europe/Berlin' })).toMatch(/-01 00:00:00$/)
    for (const path of ['/v1/organization', instancePath()]) {
      expect((await call('PATCH', path, { budgets: [] })).body.budgets).toEqual([])
    }
  })

  test('each change is in the history, and none without a change', async () => {
    const before = (await call('GET', '/v1/organization/events?order=asc&type=budget.changed')).body.length
    await call('PATCH', instancePath(), { budgets: [daily] })
    await call('PATCH', instancePath(), { budgets: [daily] })
    await call('PATCH', instancePath(), { budgets: [{ ...daily, limit: { tokens: 7 }, mode: 'warn' }] })
    await call('PATCH', instancePath(), { budgets: [] })
    const { body: events } = await call('GET', '/v1/organization/events?order=asc&type=budget.changed')
    expect(events.slice(before).map(({ reason }: { reason: string }) => reason)).toEqual([
      'daily: 100 tokens a day, hard',
      'daily: 7 tokens a day, warn',
      'none',
    ])
    expect(events.at(-1)).toMatchObject({ instance_id: id, actor: { type: 'key' } })
  })

  test.each([
    [{ ...daily, limit: {} }, 422, undefined],
    [{ ...daily, limit: { tokens: 1, usd: 1 } }, 422, undefined],
    [{ ...daily, limit: { tokens: 0 } }, 422, undefined],
    [{ ...daily, scope: 'key' }, 422, undefined],
    [{ ...daily, name: 'spend limit' }, 422, undefined],
    [{ ...daily, per: 'week' }, 422, undefined],
    [{ ...daily, time_zone: '+02:00' }, 400, 'invalid_value'],
    [{ ...daily, time_zone: 'Mars/Olympus' }, 400, 'invalid_value'],
  ])('%o is refused with %i', async (budget, status, code) => {
    const answer = await call('PATCH', instancePath(), { budgets: [budget] })
    expect([answer.status, answer.status === 400 ? answer.body.error.code : undefined]).toEqual([status, code])
    const both = await call('PATCH', '/v1/organization', { budgets: [daily, daily] })
    expect([both.status, both.body.error.code]).toEqual([400, 'invalid_value'])
    expect((await call('GET', instancePath())).body.budgets).toEqual([])
  })

  test('only an organization key changes those of an instance', async () => {
    const body = { name: 'k', instance_ids: [id], permissions: ['configure', 'read'] }
    const { raw_key: scoped } = (await call('POST', '/v1/keys', body)).body
    const { status, body: answer } = await call('PATCH', instancePath(), { budgets: [] }, scoped)
    expect([status, answer.error.code, answer.error.param]).toEqual([403, 'lacks_permission', 'budgets'])
    expect((await call('GET', instancePath(), undefined, scoped)).body.budgets).toEqual([])
  })

  test('T3: a scoped key changes no label, by which its organization tells instances apart', async () => {
    await call('PATCH', instancePath(), { metadata: { plan: 'free' } })
    const body = { name: 'k', instance_ids: [id], permissions: ['configure', 'read'] }
    const { raw_key: scoped } = (await call('POST', '/v1/keys', body)).body
    for (const metadata of [{ plan: null }, { plan: 'pro' }, null]) {
      const { status, body: answer } = await call('PATCH', instancePath(), { metadata }, scoped)
      expect([status, answer.error.code, answer.error.param]).toEqual([403, 'lacks_permission', 'metadata'])
    }
    expect((await call('PATCH', instancePath(), { name: 'mine' }, scoped)).body.metadata).toEqual({ plan: 'free' })
    expect((await call('PATCH', instancePath(), { metadata: { plan: 'pro' } })).body.metadata).toEqual({ plan: 'pro' })
    await call('PATCH', instancePath(), { metadata: null })
  })

  test('what is used stays with the name, and not with another scope, unit or period', async () => {
    const set = async (budget: object) => (await call('PATCH', instancePath(), { budgets: [budget] })).body.budgets[0]
    await set(daily)
    await use(60)
    expect(await set({ ...daily, limit: { tokens: 70 } })).toMatchObject({
      used: 60,
      remaining: 10,
      state: 'nearly_used_up',
    })
    expect(await set({ ...daily, per: 'month' })).toMatchObject({ used: 0 })
    expect(await set(daily)).toMatchObject({ used: 0 })
    expect(await set({ ...daily, scope: 'end_user' })).toMatchObject({ used: 0 })
    await set({ ...daily, name: 'other' })
    await call('PATCH', instancePath(), { budgets: [] })
  })
})

describe('a turn', () => {
  const refused = async (answer: Promise<{ status: number; body: { error: { code: string; message: string } } }>) => {
    const { status, body } = await answer
    expect([status, body.error.code]).toEqual([402, 'budget_exceeded'])
    return body.error.message
  }

  test('is refused before it reaches the agent while a hard budget is used up, and goes on when it is raised', async () => {
    await call('PATCH', instancePath(), { budgets: [daily] })
    expect((await turn()).status).toBe(200)
    await use(100)
    await untilChecked()
    const asked = gateway.turns.length
    expect(await refused(turn())).toMatch(
      /^The budget “daily” of this agent is used up until \d{4}-\d\d-\d\d 00:00 \(UTC\), when it resets\. Daily usage limit: 100 tokens\.$/,
    )
    const chat = { model: 'openclaw', messages: [{ role: 'user', content: 'hello' }] }
    await refused(call('POST', `${instancePath()}/chat/completions`, chat))
    expect(gateway.turns).toHaveLength(asked)
    await call('PATCH', instancePath(), { budgets: [{ ...daily, limit: { tokens: 200 } }] })
    await untilChecked()
    expect((await turn()).status).toBe(200)
    await call('PATCH', instancePath(), { budgets: [{ ...daily, mode: 'warn', limit: { tokens: 1 } }] })
    await untilChecked()
    expect((await turn()).status).toBe(200)
    await call('PATCH', instancePath(), { budgets: [] })
  })

  test('counts under the budget of its end user, in every session, and no other is refused', async () => {
    await call('PATCH', '/v1/organization', { budgets: [{ ...daily, scope: 'end_user' }] })
    const [ann, bob] = [{ user: 'ann' }, { user: 'bob' }]
    expect((await turn(key, { ...ann, session: 'of-ann' })).status).toBe(200)
    await use(60, 'ann')
    await use(60, 'bob')
    await use(1000)
    expect((await call('GET', '/v1/organization')).body.budgets[0]).toMatchObject({ used: 60, remaining: 40 })
    await use(60, 'ann')
    await untilChecked()
    for (const session of ['of-ann', 'another'])
      expect(await refused(turn(key, { ...ann, session }))).toMatch(/^The budget “daily” of this end user is used up/)
    // Without a `user` the turn is of the one whom its session had last.
    await refused(turn(key, { session: 'of-ann' }))
    expect((await turn(key, { session: 'of-nobody' })).status).toBe(200)
    expect((await turn(key, { ...bob, session: 'of-ann' })).status).toBe(200)
    await untilChecked()
    expect((await turn(key, { session: 'of-ann' })).status).toBe(200)
    const chat = { model: 'openclaw', messages: [{ role: 'user', content: 'hello' }] }
    await refused(call('POST', `${instancePath()}/chat/completions`, { ...chat, ...ann }))
    expect((await call('POST', `${instancePath()}/chat/completions`, { ...chat, ...bob })).status).toBe(200)
    const token = async (endUser: string) =>
      (await call('POST', `${instancePath()}/client_tokens`, { session_ids: ['of-ann'], end_user: endUser })).body
        .client_token
    await refused(turn(await token('ann'), { session: 'of-ann' }))
    // The holder of a token is who the token says.
    await refused(turn(await token('ann'), { ...bob, session: 'of-ann' }))
    expect((await turn(await token('bob'), { ...ann, session: 'of-ann' })).status).toBe(200)
    const { body: events } = await call('GET', '/v1/organization/events?order=asc&type=budget.reached')
    expect(events.at(-1).reason).toBe('100 % of 100 tokens in this day, by the end user ann')
    await call('PATCH', '/v1/organization', { budgets: [] })
  })

  test('is not held back by unattended calls', async () => {
    await call('PATCH', instancePath(), {
      budgets: [{ name: 'x', scope: 'unattended', limit: { calls: 1 }, per: 'day' }],
    })
    await query(
      `INSERT INTO model_calls (id, organization_id, instance_id, cause, provider, began_at, outcome)
       VALUES ($1, $2, $3, 'cron', 'anthropic', now(), 'answered')`,
      [newId(), organizationId, id],
    )
    await untilChecked()
    expect((await call('GET', instancePath())).body.budgets[0].state).toBe('used_up')
    expect((await turn()).status).toBe(200)
    await call('PATCH', instancePath(), { budgets: [] })
  })

  test('is not counted twice when a lost call is corrected by its end', async () => {
    await call('PATCH', instancePath(), { budgets: [daily] })
    await use(30)
    await query(
      'UPDATE model_calls SET input_tokens = 40 WHERE id = (SELECT id FROM model_calls ORDER BY id DESC LIMIT 1)',
    )
    expect((await call('GET', instancePath())).body.budgets[0].used).toBe(40)
    await call('PATCH', instancePath(), { budgets: [] })
  })
})

test('nothing is left of the budgets of an organization or an instance that is gone', async () => {
  const { key: own, id: owner } = await chowder.signUp()
  await call('PATCH', '/v1/organization', { budgets: [daily] }, own)
  const made = (await call('POST', '/v1/instances', { name: 'z', budgets: [daily] }, own)).body.id
  const left = () => query('SELECT owner_id FROM budgets WHERE organization_id = $1', [owner])
  await chowder.call('DELETE', `/v1/instances/${made}`, { key: own })
  await until('the end of its sandbox', async () => {
    const [row] = await query('SELECT observed_generation = generation AS is_settled FROM instances WHERE id = $1', [
      made,
    ])
    return row?.is_settled === true
  })
  await eraseTerminated(chowder.deps.db)
  expect(await left()).toHaveLength(2)
  await query("UPDATE instances SET terminated_at = now() - interval '31 days' WHERE id = $1", [made])
  await eraseTerminated(chowder.deps.db)
  expect(await left()).toEqual([{ owner_id: owner }])
  await chowder.call('DELETE', '/v1/organization', { key: own, body: { name: 'Acme' } })
  await until('the erasure', async () => (await left()).length === 0)
})
