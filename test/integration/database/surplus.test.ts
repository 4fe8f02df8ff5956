import { afterAll, expect, test } from 'vitest'
import { defaultKeptBytes, deleteSurplus } from '#database/surplus.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
afterAll(() => chowder.close())

const query = async (text: string, ...values: unknown[]) => (await chowder.database.pool.query(text, values)).rows
const count = async (table: string, organizationId: string) =>
  (await query(`SELECT count(*)::int FROM ${table} WHERE organization_id = $1`, organizationId))[0].count

test('beyond its bytes an organization loses its oldest rows of each kind, and no other does', async () => {
  const [organization, other] = [await chowder.signUp(), await chowder.signUp()]
  for (const { id, key } of [organization, other]) {
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'agent' } })
    await query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_object, created_at)
       SELECT gen_random_uuid(), $1, $2, 'main', 'completed', repeat('x', 800), now() - n * interval '1 min'
       FROM generate_series(1, 10) n`,
      id,
      body.id,
    )
    await query(
      `INSERT INTO model_calls (id, organization_id, instance_id, provider, outcome, began_at)
       SELECT gen_random_uuid(), $1, $2, 'anthropic', 'answered', now() - n * interval '1 min'
       FROM generate_series(1, 2500) n`,
      id,
      body.id,
    )
    await query('DELETE FROM events WHERE organization_id = $1', id)
    const first = id === organization.id ? 1 : 4001
    await query(
      `INSERT INTO events (organization_id, type, actor_type) SELECT $1, 'file.write', 'key'
       FROM generate_series($2::int, 5000) n`,
      id,
      first,
    )
  }
  await query(`DELETE FROM responses WHERE organization_id = $1 AND created_at < now() - interval '4.5 min'`, other.id)
  await query(
    `DELETE FROM model_calls WHERE organization_id = $1 AND began_at < now() - interval '500.5 min'`,
    other.id,
  )
  const [latest] = await query('SELECT max(id) FROM events WHERE organization_id = $1', organization.id)

  await deleteSurplus(chowder.deps.db, undefined, { responses: 4000, events: 1000 * 500, model_calls: 500 * 300 })
  for (const { id } of [organization, other]) {
    expect([await count('responses', id), await count('events', id), await count('model_calls', id)]).toEqual([
      4, 1000, 500,
    ])
  }
  const newest = await query(
    `SELECT (SELECT min(created_at) > now() - interval '5 min' FROM responses WHERE organization_id = $1) AS responses,
       (SELECT max(id) = $2 FROM events WHERE organization_id = $1) AS events,
       (SELECT min(began_at) > now() - interval '501 min' FROM model_calls WHERE organization_id = $1) AS calls`,
    organization.id,
    latest.max,
  )
  expect(newest).toEqual([{ responses: true, events: true, calls: true }])
  expect(defaultKeptBytes.responses).toBeGreaterThan(1e9)
})
