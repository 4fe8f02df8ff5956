import { afterAll, afterEach, describe, expect, onTestFinished, test, vi } from 'vitest'
import { createBilling } from '#api/subscription/stripe.ts'
import { eraseTerminated } from '#instances/erase.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { FakeStripe, stripePrices, stripeSecretKey, stripeWebhookSecret } from '../../support/fake-stripe.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const stripe = await new FakeStripe().open()
const driver = new FakeDriver(() => gateway.endpoint)
const billing = await createBilling({
  secretKey: stripeSecretKey,
  webhookSecret: stripeWebhookSecret,
  apiUrl: stripe.url,
  returnUrl: () => 'https://app.example.com',
  timeoutMs: 4000,
})
const chowder = await openTestChowder({ sandboxes: driver, billing })
await chowder.startWorker()
afterEach(() => {
  driver.heal()
  stripe.heal()
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
  await stripe.close()
})

const remove = (key: string, body: unknown = { name: 'Acme' }) =>
  chowder.call('DELETE', '/v1/organization', { key, body })
const create = async (key: string): Promise<string> =>
  (await chowder.call('POST', '/v1/instances', { key, body: { name: 'canary of a name' } })).body?.id
const isRunning = (key: string, id: string) =>
  until(
    `${id} to run`,
    async () => (await chowder.call('GET', `/v1/instances/${id}`, { key })).body.status === 'running',
  )
const query = async (text: string, ...values: unknown[]) => (await chowder.database.pool.query(text, values)).rows
const linesOf = (message: string, organizationId: string) =>
  chowder.logged
    .map((line) => JSON.parse(line))
    .filter((line) => line.msg === message && line.organizationId === organizationId)
const erased = (organizationId: string) =>
  until('the proof', () => linesOf('organization erased', organizationId)[0], 15_000)

test('S10: the data of a caller in a terminated instance is erased after 30 days, and not before', async () => {
  const { key } = await chowder.signUp({ providerKey: 'sk-canary' })
  const body = { name: 'canary of a name', metadata: { canary: 'yes' }, openclaw_config: { 'session.dmScope': 'main' } }
  const ids: string[] = []
  const addHost = (id: string) =>
    query(
      `INSERT INTO egress_hosts (instance_id, host, port, organization_id, verdict, connections)
       SELECT id, 'api.example.com', 443, organization_id, 'allowed', 1 FROM instances WHERE id = $1`,
      id,
    )
  const hostsOf = (id: string | undefined) => query('SELECT host FROM egress_hosts WHERE instance_id = $1', id)
  for (const days of [29, 31]) {
    const { id } = (await chowder.call('POST', '/v1/instances', { key, body })).body
    ids.push(id)
    await isRunning(key, id)
    expect((await chowder.call('GET', `/v1/instances/${id}`, { key })).body.openclaw_config).not.toBe(null)
    await addHost(id)
    await chowder.call('DELETE', `/v1/instances/${id}`, { key })
    const isSettled = async () =>
      (await query('SELECT FROM instances WHERE id = $1 AND observed_generation = generation', id)).length === 1
    await until('the sandbox to be gone', isSettled)
    expect(await hostsOf(id), 'they are gone with the sandbox').toEqual([])
    await addHost(id)
    await query(`UPDATE instances SET terminated_at = now() - make_interval(days => $2) WHERE id = $1`, id, days)
  }
  const [kept, over] = ids
  const secretsOf = async (id: string | undefined) =>
    (await query('SELECT sealed_config, sealed_token, sealed_instructions FROM instances WHERE id = $1', id))[0]
  const noSecrets = { sealed_config: null, sealed_token: '', sealed_instructions: null }
  expect(await secretsOf(kept), 'its sandbox is gone').toEqual(noSecrets)
  const rowOf = async (id: string | undefined) =>
    (await query('SELECT name, metadata, sealed_config, sealed_token FROM instances WHERE id = $1', id))[0]
  expect(await eraseTerminated(chowder.database.db)).toBe(1)
  expect(await rowOf(over)).toEqual({ name: '', metadata: {}, sealed_config: null, sealed_token: '' })
  expect(await rowOf(kept)).toMatchObject({ name: 'canary of a name', metadata: { canary: 'yes' } })
  expect([await hostsOf(over), await hostsOf(kept)]).toEqual([[], [{ host: 'api.example.com' }]])
  expect(await eraseTerminated(chowder.database.db)).toBe(0)
  expect((await chowder.call('GET', `/v1/instances/${kept}`, { key })).body).toMatchObject({
    name: 'canary of a name',
    openclaw_config: null,
    instructions: null,
  })
})

describe('DELETE /v1/organization', () => {
  test('a name other than that of the organization is a 400, no name a 422, and nothing changes', async () => {
    const { key } = await chowder.signUp()
    const id = await create(key)
    const answers = [
      await remove(key, { name: 'acme' }),
      await remove(key, { name: 'Acme ' }),
      await remove(key, { name: '' }),
      await remove(key, {}),
      await remove(key, { name: 'Acme', force: true }),
    ]
    expect(answers.map(({ status }) => status)).toEqual([400, 400, 400, 422, 422])
    expect(answers[0]?.body.detail).toContain('Repeat it exactly')
    await isRunning(key, id)
    expect((await chowder.call('DELETE', '/v1/organization', { body: { name: 'Acme' } })).status).toBe(401)
  })

  test('A23: keys, secrets and agents are deleted, and the log has the request and the proof', async () => {
    const { id: organizationId, key } = await chowder.signUp({ providerKey: 'sk-canary' })
    const ids = [await create(key), await create(key)]
    for (const id of ids) await isRunning(key, id)
    await query(
      `INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'telegram', true, 'v1.x')`,
      ids[0],
    )
    await query(`INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'weather', 'v1.x')`, ids[0])
    await query(
      `INSERT INTO idempotency_keys (organization_id, key, request_hash, sealed_answer, expires_at)
       VALUES ($1, 'k', '', 'v1.x', now() + interval '1 day')`,
      organizationId,
    )

    expect(await remove(key)).toMatchObject({ status: 204, body: undefined })

    expect((await chowder.call('GET', '/v1/organization', { key })).status).toBe(401)
    for (const table of ['api_keys', 'provider_keys', 'idempotency_keys']) {
      expect(await query(`SELECT * FROM ${table} WHERE organization_id = $1`, organizationId)).toEqual([])
    }
    for (const table of ['channels', 'skills']) {
      expect(await query(`SELECT * FROM ${table} WHERE instance_id = ANY($1)`, ids)).toEqual([])
    }
    expect(linesOf('organization deleted; its sandboxes are being destroyed', organizationId)[0]).toMatchObject({
      instances: 2,
      keys: 1,
      secrets: 4,
    })
    expect(await erased(organizationId)).toMatchObject({ instances: 2, deletedAt: expect.any(String) })
    expect(ids.filter((id) => driver.sandboxes.has(id))).toEqual([])
    await until('the mark', async () => {
      return (await query('SELECT erased_at FROM organizations WHERE id = $1', organizationId))[0]?.erased_at
    })
    const [organization] = await query('SELECT * FROM organizations WHERE id = $1', organizationId)
    expect(organization).toMatchObject({ name: '', instance_count: 0, deleted_at: expect.any(Date) })
    const rows = await query('SELECT * FROM instances WHERE organization_id = $1', organizationId)
    for (const row of rows) {
      expect(row).toMatchObject({ name: '', metadata: {}, sealed_config: null, sealed_token: '', endpoint: null })
    }
    expect(JSON.stringify(rows)).not.toContain('canary')
    expect(linesOf('organization erased', organizationId).length).toBe(1)
  })

  test('the proof waits for the last sandbox, and survives a restart of the worker', async () => {
    const own = await openTestChowder({ sandboxes: driver })
    const { body } = await own.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
    const { api_key: key, organization } = body
    await own.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { anthropic: 'sk' } } })
    const first = await own.startWorker()
    const created = await own.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    await until('it to run', async () => {
      return (await own.call('GET', `/v1/instances/${created.body.id}`, { key })).body.status === 'running'
    })
    driver.fail({ method: 'destroy', times: 1000 })
    await own.call('DELETE', '/v1/organization', { key, body: { name: 'Acme' } })
    await until('a destroy to fail', () =>
      own.logged.some((line) => line.includes('"step":"destroySandbox"') && line.includes('step failed')),
    )
    await first.stop()
    const proofs = () => own.logged.filter((line) => line.includes('organization erased'))
    expect(proofs()).toEqual([])
    driver.heal()
    await own.database.pool.query('UPDATE instances SET next_attempt_at = now()')
    await own.startWorker()
    await until('the proof', () => proofs().length > 0)
    expect(driver.sandboxes.has(created.body.id)).toBe(false)
    expect(JSON.parse(proofs()[0] ?? '')).toMatchObject({ organizationId: organization.id, instances: 1 })
    await own.close()
  })

  test('A23: creates, deletes, keys and a second deletion at the same time leave nothing behind, and none answers a 5xx', async () => {
    for (let round = 0; round < 10; round += 1) {
      const { id: organizationId, key } = await chowder.signUp()
      const before = [await create(key), await create(key)]
      const setKey = (openai: string) =>
        chowder.call('PATCH', '/v1/organization', { key, body: { model_api_keys: { openai } } })
      // A request that is still open when its key is found deleted gets no answer: its connection is cut.
      const withCut = (call: Promise<{ status: number }>) =>
        call.catch((error: Error) => {
          if (error.message !== 'response destroyed before completion') throw error
          return { status: 'cut' as const }
        })
      const calls = [
        ...Array.from({ length: 8 }, () => chowder.call('POST', '/v1/instances', { key, body: { name: 'late' } })),
        setKey('sk-early'),
        chowder.call('DELETE', `/v1/instances/${before[0]}`, { key }),
        remove(key),
        remove(key),
        setKey('sk-late'),
        ...Array.from({ length: 8 }, () => chowder.call('POST', '/v1/instances', { key, body: { name: 'late' } })),
      ]
      const answers = await Promise.all(calls.map(withCut))
      expect(
        answers.map(({ status }) => status).filter((status) => ![200, 201, 204, 400, 401, 'cut'].includes(status)),
      ).toEqual([])
      expect(
        await query(
          `SELECT id FROM instances WHERE organization_id = $1 AND desired_state <> 'terminated'`,
          organizationId,
        ),
      ).toEqual([])
      expect(await query('SELECT instance_count FROM organizations WHERE id = $1', organizationId)).toEqual([
        { instance_count: 0 },
      ])
      expect(await query('SELECT * FROM provider_keys WHERE organization_id = $1', organizationId)).toEqual([])
      expect(linesOf('organization deleted; its sandboxes are being destroyed', organizationId).length).toBe(1)
      await erased(organizationId)
      const ids = await query('SELECT id FROM instances WHERE organization_id = $1', organizationId)
      expect(ids.filter(({ id }) => driver.sandboxes.has(id))).toEqual([])
    }
  })

  test('R10: of very many agents the deletion terminates the first, and a worker the others', async () => {
    const { id, key } = await chowder.signUp()
    await query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token,
                              desired_state, observed_generation)
       SELECT gen_random_uuid(), $1, 'one of many', 'anthropic', 'of another worker', 'v1', 'x', 'stopped', 1
       FROM generate_series(1, 2300)`,
      id,
    )
    const living = async () =>
      Number(
        (
          await query(`SELECT count(*) FROM instances WHERE organization_id = $1 AND desired_state <> 'terminated'`, id)
        )[0].count,
      )
    expect((await remove(key)).status).toBe(204)
    const terminatedAt = `SELECT count(DISTINCT terminated_at) FROM instances WHERE organization_id = $1`
    await until('the others to be terminated', async () => (await living()) === 0, 15_000)
    expect(Number((await query(terminatedAt, id))[0].count), 'statements').toBe(23)
    expect(linesOf('organization erased', id)).toEqual([])
    await query('UPDATE instances SET observed_generation = generation WHERE organization_id = $1', id)
    await erased(id)
  })

  test('R1: the request deletes a batch of what an organization has very much of, and a worker the others', async () => {
    const { id, key } = await chowder.signUp()
    await query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token,
                              desired_state, observed_generation)
       SELECT gen_random_uuid(), $1, 'one of many', 'anthropic', 'of another worker', 'v1', 'x', 'stopped', 1
       FROM generate_series(1, 350)`,
      id,
    )
    for (const columns of ['channels (instance_id, channel, enabled, sealed_config)', 'skills (instance_id, name)'])
      await query(
        `INSERT INTO ${columns} SELECT id, 'one' ${columns.startsWith('channels') ? ", true, 'v1.x'" : ''}
         FROM instances WHERE organization_id = $1`,
        id,
      )
    await query(
      `INSERT INTO idempotency_keys (organization_id, key, request_hash, sealed_answer, expires_at)
       SELECT $1, 'k' || n, '', 'v1.x', now() + interval '1 day' FROM generate_series(1, 350) n`,
      id,
    )
    await query(
      `INSERT INTO api_keys (id, organization_id, key_hash, key_prefix, revoked_at)
       SELECT gen_random_uuid(), $1, decode(md5('revoked ' || n), 'hex'), 'ck', now() FROM generate_series(1, 1350) n`,
      id,
    )
    const tables = ['instances', 'channels', 'skills', 'idempotency_keys', 'api_keys']
    await query('CREATE TABLE deleted_rows (of_table text, transaction xid8, row_count int)')
    await query(`CREATE FUNCTION note_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO deleted_rows SELECT TG_TABLE_NAME, pg_current_xact_id(), count(*) FROM old_rows; RETURN NULL; END $$`)
    for (const table of tables) {
      await query(`CREATE TRIGGER note_deleted AFTER ${table === 'instances' ? 'UPDATE' : 'DELETE'} ON ${table}
        REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION note_deleted()`)
    }
    onTestFinished(async () => void (await query('DROP FUNCTION note_deleted CASCADE; DROP TABLE deleted_rows')))

    expect((await remove(key)).status).toBe(204)
    const left = async (table: string, condition: string) =>
      Number((await query(`SELECT count(*) FROM ${table} WHERE ${condition}`, id))[0].count)
    const ofInstances = 'instance_id IN (SELECT id FROM instances WHERE organization_id = $1)'
    for (const [table, condition] of [
      ['instances', "organization_id = $1 AND desired_state <> 'terminated'"],
      ['channels', ofInstances],
      ['skills', ofInstances],
      ['idempotency_keys', 'organization_id = $1'],
      ['api_keys', 'organization_id = $1'],
    ] as const)
      await until(`${table} to be gone`, async () => (await left(table, condition)) === 0, 15_000)
    const largest = await query(
      `SELECT of_table, max(row_count) AS rows FROM (
         SELECT of_table, sum(row_count) AS row_count FROM deleted_rows GROUP BY of_table, transaction
       ) AS sums GROUP BY of_table ORDER BY of_table`,
    )
    expect(Object.fromEntries(largest.map(({ of_table, rows }) => [of_table, Number(rows)]))).toEqual({
      api_keys: 1000,
      channels: 100,
      idempotency_keys: 100,
      instances: 100,
      skills: 100,
    })
    await query('UPDATE instances SET observed_generation = generation WHERE organization_id = $1', id)
    await erased(id)
  })

  test('R1: deletes no contents in the request, and in batches that an index finds afterwards', async () => {
    const { id, key } = await chowder.signUp()
    const [{ id: instanceId }] = await query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token,
                              desired_state, observed_generation)
       VALUES (gen_random_uuid(), $1, 'with contents', 'anthropic', 'of another worker', 'v1', 'x', 'stopped', 1)
       RETURNING id`,
      id,
    )
    const rows = 2500
    await query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status)
       SELECT gen_random_uuid(), $1, $2, 's', 'completed' FROM generate_series(1, ${rows})`,
      id,
      instanceId,
    )
    await query(
      `INSERT INTO events (organization_id, type, actor_type, reason)
       SELECT $1, 'file.write', 'key', 'canary' FROM generate_series(1, ${rows})`,
      id,
    )
    await query('CREATE TABLE batches (of_table text, row_count int)')
    await query(`CREATE FUNCTION note_batch() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN INSERT INTO batches SELECT TG_TABLE_NAME, count(*) FROM old_rows HAVING count(*) > 1; RETURN NULL; END $$`)
    for (const [table, statement] of [
      ['responses', 'DELETE'],
      ['events', 'UPDATE'],
    ]) {
      await query(`CREATE TRIGGER note_batch AFTER ${statement} ON ${table} REFERENCING OLD TABLE AS old_rows
        FOR EACH STATEMENT EXECUTE FUNCTION note_batch()`)
    }
    onTestFinished(async () => void (await query('DROP FUNCTION note_batch CASCADE; DROP TABLE batches')))
    const batches = async (table: string): Promise<number[]> =>
      (await query('SELECT row_count FROM batches WHERE of_table = $1', table)).map(({ row_count }) => row_count)

    expect((await remove(key)).status).toBe(204)
    expect([await batches('responses'), await batches('events')]).toEqual([[], []])
    await query('UPDATE instances SET observed_generation = generation WHERE organization_id = $1', id)
    const queries = vi.spyOn(chowder.database.pool, 'query')
    onTestFinished(() => queries.mockRestore())
    await erased(id)
    const calls = queries.mock.calls as unknown as [{ text: string }, unknown[]][]
    const asked = (pattern: RegExp) =>
      calls.filter(
        ([{ text }, values]) => pattern.test(text ?? '') && (values?.includes(id) || values?.includes(instanceId)),
      )
    expect(await batches('responses')).toEqual([1000, 1000, 500])
    expect(Math.max(...(await batches('events')))).toBe(1000)
    const redactions = asked(/UPDATE events/).map(([, values]) => Number(values[1]))
    expect(redactions, 'each goes on after the last').toEqual([...new Set(redactions)].sort((a, b) => a - b))
    expect(redactions.length).toBeGreaterThan(2)

    const client = await chowder.database.pool.connect()
    await client.query('BEGIN')
    for (const plan of ['seqscan', 'bitmapscan', 'sort', 'incremental_sort']) // few rows
      await client.query(`SET LOCAL enable_${plan} = off`)
    const planOf = async (pattern: RegExp) => {
      const [{ text }, values] = present(asked(pattern)[0])
      return JSON.stringify((await client.query(`EXPLAIN ${text}`, values)).rows)
    }
    const plans = [
      await planOf(/DELETE FROM responses/),
      await planOf(/IN \(\s*SELECT id FROM instances/),
      await planOf(/UPDATE events/),
    ]
    await client.query('ROLLBACK')
    client.release()
    expect(plans[0]).toMatch(/Index (Only )?Scan using responses_(instance|session) on responses/)
    expect(plans[1]).toContain('Index Scan using instances_of_organization_to_erase')
    expect(plans[2]).toContain('Index Scan using events_organization on events')
    expect(plans.slice(1).join(), 'all rows are read to sort them').not.toMatch(/Sort Key: (instances|events)/)
  })

  test('a paid subscription is cancelled, also when Stripe is down at first', async () => {
    const { id: organizationId, key } = await chowder.signUp()
    await chowder.call('POST', '/v1/subscription/checkout', { key, body: { tier: 'crab' } })
    const { stripe_customer_id } = (await chowder.call('GET', '/v1/subscription', { key })).body
    const paid = [
      stripe.subscribe(stripe_customer_id, stripePrices.crab, 1),
      stripe.subscribe(stripe_customer_id, stripePrices.lobster, 1),
    ]
    stripe.fail({ path: /./, status: 500, times: 1000 })
    expect((await remove(key)).status).toBe(204)
    await until(
      'a failure',
      () => linesOf('the sync of a subscription with Stripe failed and will be repeated', organizationId)[0],
    )
    stripe.heal()
    await until('both to be cancelled', async () => {
      await query('UPDATE organizations SET next_billing_at = now() WHERE id = $1', organizationId)
      return paid.every(({ status }) => status === 'canceled')
    })
    await erased(organizationId)
  })

  test('a subscription that is paid afterwards is cancelled too', async () => {
    const { key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/subscription/checkout', { key, body: { tier: 'crab' } })
    const session = present(stripe.sessions.get(body.url.split('/').at(-1)))
    await remove(key)
    const subscription = stripe.pay(session)
    const { payload, signature } = stripe.deliver(stripe.event('checkout.session.completed', session))
    const headers = { 'content-type': 'application/json', 'stripe-signature': signature }
    await chowder.app.inject({ method: 'POST', url: '/v1/webhooks/stripe', headers, payload })
    await until('it to be cancelled', () => subscription.status === 'canceled')
  })
})
