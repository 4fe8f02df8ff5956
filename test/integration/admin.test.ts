import { execFile } from 'node:child_process'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import pino from 'pino'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startEmbeddedPostgres } from '#database/embedded.ts'
import { migrate } from '#database/migrate.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const program = fileURLToPath(import.meta.resolve('#commands/admin.ts'))
const unknownId = '00000000-0000-7000-8000-000000000000'

/** Runs the command with an environment of its own. Returns its output and its exit code. */
const admin = (env: Record<string, string>, ...args: string[]) =>
  new Promise<{ code: number; output: string; error: string }>((resolve) => {
    execFile(process.execPath, [program, ...args], { env, timeout: 60_000 }, (failure, output, error) =>
      resolve({ code: failure ? Number(failure.code) : 0, output, error }),
    )
  })

const urlOf = ({ connectionString, host, port, user, password, database }: pg.PoolConfig) =>
  connectionString ?? `postgresql://${user}:${password}@${encodeURIComponent(host ?? '')}:${port}/${database}`

describe('npm run admin with DATABASE_URL', () => {
  let chowder: TestChowder
  let env: Record<string, string>

  beforeAll(async () => {
    chowder = await openTestChowder({ sandboxes: new FakeDriver(), defaultTier: 'shrimp' })
    const secretKey = Buffer.alloc(32, 1).toString('base64')
    env = { DATABASE_URL: urlOf(chowder.database.connection), CHOWDER_SECRET_KEY: secretKey }
  })
  afterAll(() => chowder.close())

  const organization = async (key: string) => (await chowder.call('GET', '/v1/organization', { key })).body

  test('set-tier gives a tier and its limit, and list-orgs shows it', async () => {
    const { id, key } = await chowder.signUp()
    expect(await admin(env, 'set-tier', id, 'whale')).toMatchObject({
      code: 0,
      output: `${id}\tAcme\twhale\t0/∞\tactive\n`,
    })
    expect(await organization(key)).toMatchObject({ subscription_tier: 'whale', instance_limit: null })
    expect((await admin(env, 'set-tier', id, 'crab')).code).toBe(0)
    expect(await organization(key)).toMatchObject({ subscription_tier: 'crab', instance_limit: 10 })
    expect((await admin(env, 'list-orgs')).output).toContain(`${id}\tAcme\tcrab\t0/10\tactive\n`)
  })

  test('set-tier gives an organization with a subscription no tier but whale', async () => {
    const { id, key } = await chowder.signUp()
    await chowder.database.pool.query(
      `UPDATE organizations SET stripe_customer_id = 'cus_1', stripe_subscription_id = 'sub_1', billed_count = 0 WHERE id = $1`,
      [id],
    )
    const refused = await admin(env, 'set-tier', id, 'lobster')
    expect([refused.code, refused.error]).toEqual([1, expect.stringContaining('pays for at Stripe')])
    expect((await organization(key)).subscription_tier).toBe('shrimp')
    expect((await admin(env, 'set-tier', id, 'whale')).code).toBe(0)
    expect((await organization(key)).subscription_tier).toBe('whale')
  })

  test('disable-org refuses the keys within a second and keeps the agents running; enable-org undoes it', async () => {
    const { id, key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    const status = async () => (await chowder.call('GET', '/v1/organization', { key })).status
    expect((await admin(env, 'disable-org', id)).output).toContain('disabled')
    await until('the key to be refused', async () => (await status()) >= 400, 1500)
    const { rows } = await chowder.database.pool.query('SELECT desired_state FROM instances WHERE id = $1', [body.id])
    expect(rows).toEqual([{ desired_state: 'running' }])
    expect((await admin(env, 'enable-org', id)).output).toContain('active')
    await until('the key to work', async () => (await status()) === 200, 1500)
  })

  test('delete-org deletes the organization with all its data, and list-orgs no longer shows it', async () => {
    const { id, key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    const { code, output } = await admin(env, 'delete-org', id)
    expect([code, output]).toEqual([
      0,
      `${id} is deleted: 1 keys and 1 secrets erased, 1 agents to be destroyed by a worker.\n`,
    ])
    await until(
      'the key to be refused',
      async () => (await chowder.call('GET', '/v1/organization', { key })).status === 401,
      1500,
    )
    const { rows } = await chowder.database.pool.query('SELECT desired_state FROM instances WHERE id = $1', [body.id])
    expect(rows).toEqual([{ desired_state: 'terminated' }])
    expect((await admin(env, 'list-orgs')).output).not.toContain(id)
    expect((await admin(env, 'delete-org', id)).error).toContain('There is no organization')
  })

  test.each([
    [[], 'usage'],
    [['crash-org', unknownId], 'usage'],
    [['set-tier', unknownId, 'gold'], 'usage'],
    [['set-tier', unknownId, 'whale'], 'There is no organization'],
    [['delete-org', 'Acme'], 'There is no organization'],
    [['disable-org'], 'There is no organization'],
  ])('%j ends with 1 and says why in a line without a stack', async (args, said) => {
    const { code, output, error } = await admin(env, ...args)
    expect([code, output, error]).toEqual([1, '', expect.stringContaining(said)])
    expect(error).not.toContain('    at ')
  })
})

test('it works beside a running Chowder and without one, and leaves the embedded database as it was', async () => {
  const home = await mkdtemp(join(tmpdir(), 'chowder-admin-'))
  await chmod(home, 0o711)
  const dataDir = join(home, 'data')
  const env = { CHOWDER_DATA_DIR: dataDir }
  expect(await admin(env, 'list-orgs')).toMatchObject({ code: 1, error: expect.stringContaining('no database') })

  const log = pino({ level: 'silent' })
  const chowder = await startEmbeddedPostgres({ dataDir, log, durable: false })
  const pool = new pg.Pool(chowder.connection)
  try {
    expect(await admin(env, 'list-orgs')).toMatchObject({ code: 1, error: expect.stringContaining('migrate') })
    await migrate(pool, async () => {})
    await pool.query(
      `INSERT INTO organizations (id, name, subscription_tier) VALUES ('${unknownId}', 'Acme', 'shrimp')`,
    )
    expect(await admin(env, 'set-tier', unknownId, 'crab')).toMatchObject({ code: 0, error: '' })
    expect((await pool.query('SELECT subscription_tier FROM organizations')).rows).toEqual([
      { subscription_tier: 'crab' },
    ])
  } finally {
    await pool.end()
    await chowder.stop()
  }
  expect((await admin(env, 'list-orgs')).output).toBe(`${unknownId}\tAcme\tcrab\t0/10\tactive\n`)
  const again = await startEmbeddedPostgres({ dataDir, log, durable: false })
  await again.stop()
  await rm(home, { recursive: true, force: true })
}, 120_000)
