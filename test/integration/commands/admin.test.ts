import { execFile } from 'node:child_process'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import pg from 'pg'
import pino from 'pino'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { administer, readCommandLine } from '#commands/admin/administer.ts'
import { startEmbeddedPostgres } from '#database/embedded.ts'
import { migrate } from '#database/migrate.ts'
import { texts } from '#errors/texts.ts'
import { compiledOnce } from '../../support/compile-cache.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const program = fileURLToPath(import.meta.resolve('#commands/admin.ts'))
const unknownId = '00000000-0000-7000-8000-000000000000'

/** Runs the program with an environment of its own. Returns its output and its exit code. */
const admin = (env: Record<string, string>, ...args: string[]) =>
  new Promise<{ code: number; output: string; error: string }>((resolve) => {
    execFile(
      process.execPath,
      [program, ...args],
      { env: { ...compiledOnce, ...env }, timeout: 60_000 },
      (failure, output, error) => resolve({ code: failure ? Number(failure.code) : 0, output, error }),
    )
  })

const headings = ['ID', 'NAME', 'TIER', 'INSTANCES', 'STATE', 'CREATED']
/** A time as the tables show it. */
const day = expect.stringMatching(/^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ$/)

/** The cells of a table. */
const words = (output: string) =>
  output
    .trimEnd()
    .split('\n')
    .map((line) => line.split(/ {2,}/))

describe('the commands of the operator', () => {
  let chowder: TestChowder
  let gateway: Awaited<ReturnType<typeof startFakeGateway>>
  /** The answer that a person types at the next question; null without a terminal. */
  let answer: string | null = null
  const questions: string[] = []
  let isOneOrganization = false

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint), defaultTier: 'shrimp' })
  })
  afterAll(async () => {
    await chowder.close()
    await gateway.close()
  })

  /** Runs a command line in this process. Returns what it prints, or the message of its error. */
  async function admin(...args: string[]): Promise<{ code: number; output: string; error: string }> {
    const ask = async (question: string) => {
      questions.push(question)
      return answer
    }
    try {
      const line = readCommandLine(args)
      if (typeof line === 'string') return { code: 0, output: line, error: '' }
      const deps = {
        db: chowder.deps.db,
        defaultTier: 'whale' as const,
        isOneOrganization: async () => isOneOrganization,
        regions: async () => [{ region: 'fake', hasUnnamed: true, sandboxDriver: 'fake' }],
        report: () => {},
        vault: async () => chowder.vault,
        ask,
      }
      const output = await administer(deps, line)
      return { code: 0, output, error: '' }
    } catch (error) {
      return { code: 1, output: '', error: (error as Error).message }
    }
  }

  const organization = async (key: string) => (await chowder.call('GET', '/v1/organization', { key })).body

  test('set-tier gives a tier and its limit, and list-orgs shows it', async () => {
    const { id, key } = await chowder.signUp()
    const given = await admin('set-tier', id, 'whale')
    expect([given.code, words(given.output)]).toEqual([0, [headings, [id, 'Acme', 'whale', '0/∞', 'active', day]]])
    expect(await organization(key)).toMatchObject({ subscription_tier: 'whale', instance_limit: null })
    expect((await admin('set-tier', id, 'crab')).code).toBe(0)
    expect(await organization(key)).toMatchObject({ subscription_tier: 'crab', instance_limit: 10 })
    expect(words((await admin('list-orgs')).output)).toContainEqual([id, 'Acme', 'crab', '0/10', 'active', day])
    const listed: unknown = JSON.parse((await admin('list-orgs', '--json')).output)
    expect(listed).toContainEqual(expect.objectContaining({ id, name: 'Acme', tier: 'crab', instance_limit: 10 }))
  })

  test('create-org makes no second organization where agents are not isolated from each other', async () => {
    const { id } = await chowder.signUp()
    isOneOrganization = true
    expect(await admin('create-org', 'Second')).toMatchObject({ code: 1, error: texts.oneOrganization })
    isOneOrganization = false
    expect((await admin('create-org', 'Second')).code).toBe(0)
    expect((await admin('list-orgs')).output).toContain(id)
  })

  test('create-org prints a key that works, once, with the default tier or the given one', async () => {
    const created = JSON.parse((await admin('create-org', 'Bolt & Co', '--json')).output)
    expect(await organization(created.api_key)).toMatchObject({
      id: created.id,
      name: 'Bolt & Co',
      subscription_tier: 'whale',
      instance_limit: null,
    })
    const text = (await admin('create-org', 'Small', '--tier', 'shrimp')).output
    const key = /chd_org_[0-9a-f]+/.exec(text)?.[0] ?? ''
    expect(text).toContain('not shown again')
    expect(await organization(key)).toMatchObject({ name: 'Small', instance_limit: 1 })
    expect((await admin('list-orgs')).output).not.toContain(key)
    expect((await admin('list-keys', 'Small')).output).not.toContain(key)
  })

  test('set-limit lets more agents be made than the tier, until the tier changes', async () => {
    const { id, key } = await chowder.signUp()
    const create = async () => (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).status
    expect([await create(), await create()]).toEqual([201, 402])
    expect((await admin('set-limit', id, '2')).output).toContain('1/2')
    expect([await create(), await create()]).toEqual([201, 402])
    expect((await admin('set-limit', id, 'none')).output).toContain('2/∞')
    expect(await create()).toBe(201)
    expect((await admin('set-tier', id, 'crab')).output).toContain('3/10')
  })

  test('create-key gives an organization that has lost its key another one; the lost one can be revoked', async () => {
    const { id, key: lost } = await chowder.signUp()
    const created = JSON.parse((await admin('create-key', id, '--name', 'found', '--json')).output)
    const status = async (key: string) => (await chowder.call('GET', '/v1/organization', { key })).status
    expect(await status(created.api_key)).toBe(200)
    const keys: { id: string; name: string; state: string }[] = JSON.parse(
      (await admin('list-keys', id, '--json')).output,
    )
    expect(keys.map(({ name, state }) => [name, state])).toEqual([
      ['found', 'active'],
      ['First key', 'active'],
    ])
    const first = keys[1]?.id ?? ''
    expect((await admin('revoke-key', id, first)).output).toContain('revoked')
    await until('the lost key to be refused', async () => (await status(lost)) === 401, 1500)
    const last = await admin('revoke-key', id, created.id)
    expect([last.code, last.error]).toEqual([1, expect.stringContaining('last active organization key')])
    const { body } = await chowder.call('GET', '/v1/organization/events', { key: created.api_key })
    const acts = body.map(({ type, actor }: { type: string; actor: { type: string } }) => `${actor.type} ${type}`)
    expect(acts.slice(0, 2)).toEqual(['operator key.revoke', 'operator key.create'])
  })

  test('revoke-key revokes a scoped key', async () => {
    const { id, key } = await chowder.signUp()
    const instance = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
    const body = { name: 'bot', instance_ids: [instance], permissions: ['read'] }
    const scoped = (await chowder.call('POST', '/v1/keys', { key, body })).body
    expect((await admin('list-keys', id)).output).toContain('read')
    expect((await admin('revoke-key', id, scoped.id)).code).toBe(0)
    const read = () => chowder.call('GET', `/v1/instances/${instance}`, { key: scoped.raw_key })
    await until('the key to be refused', async () => (await read()).status === 401, 1500)
  })

  test('list-instances, show and trace tell what an instance is and what happened to it', async () => {
    const { id: organizationId, key } = await chowder.signUp()
    const worker = await chowder.startWorker()
    const made = await chowder.call('POST', '/v1/instances', { key, body: { name: 'traced' } })
    const { id } = made.body
    const status = async () => (await chowder.call('GET', `/v1/instances/${id}/status`, { key })).body.status
    await until('the instance to run', async () => (await status()) === 'running', 20_000)
    await worker.stop()

    const listed = words((await admin('list-instances', '--org', organizationId, '--status', 'running')).output)
    expect(listed[1]).toEqual([id, 'traced', 'Acme', 'running', '–', expect.any(String), day])
    const shown = (await admin('show', 'traced')).output
    expect(shown).toContain('observed_generation')
    expect(shown).toContain('instance.create')
    expect(shown).not.toMatch(/sealed|v[12]\./)

    const requestId = made.headers['x-request-id']
    const lines = (await admin('trace', String(requestId))).output.trimEnd().split('\n')
    expect(lines).toHaveLength(2)
    expect(lines[0]).toMatch(new RegExp(`instance\\.create .*provisioning .*by key .*request ${requestId}`))
    expect(lines[1]).toMatch(
      /instance\.running .*provisioning → running {2}by worker .*createSandbox \d+ ms, writeConfig/,
    )
    expect((await admin('trace', id)).output.trimEnd().split('\n')).toEqual(lines)
    const none = await admin('trace', 'no-such-request')
    expect([none.code, none.error]).toEqual([1, expect.stringContaining('No event has the request')])
  })

  test('an organization is found by its name where only one has it', async () => {
    await admin('create-org', 'Twice')
    expect((await admin('set-limit', 'Twice', '7')).output).toContain('0/7')
    await admin('create-org', 'Twice')
    expect((await admin('set-limit', 'Twice', '8')).error).toContain('More than one organization is called')
  })

  test('set-tier gives an organization with a subscription no tier but whale', async () => {
    const { id, key } = await chowder.signUp()
    await chowder.database.pool.query(
      `UPDATE organizations SET stripe_customer_id = 'cus_1', stripe_subscription_id = 'sub_1', billed_count = 0 WHERE id = $1`,
      [id],
    )
    const refused = await admin('set-tier', id, 'lobster')
    expect([refused.code, refused.error]).toEqual([1, expect.stringContaining('pays for at Stripe')])
    expect((await organization(key)).subscription_tier).toBe('shrimp')
    expect((await admin('set-tier', id, 'whale')).code).toBe(0)
    expect((await organization(key)).subscription_tier).toBe('whale')
  })

  test('S25: suspend-org refuses the keys within a second and stops the agents; resume-org starts those that ran', async () => {
    await chowder.startWorker()
    const { id, key } = await chowder.signUp()
    await admin('set-limit', id, 'none')
    const create = async () => (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
    const [running, stopped] = await Promise.all([create(), create()])
    const { pool } = chowder.database
    const stateOf = async (instanceId: string) =>
      (await pool.query('SELECT desired_state FROM instances WHERE id = $1', [instanceId])).rows[0].desired_state
    const becomes = (instanceId: string, state: string) =>
      until(`${instanceId} to be ${state}`, async () => (await stateOf(instanceId)) === state, 10_000)
    const status = async () => (await chowder.call('GET', '/v1/organization', { key })).status
    await pool.query(`UPDATE instances SET desired_state = 'stopped' WHERE id = $1`, [stopped])

    expect((await admin('suspend-org', id)).output).toContain('suspended')
    await until('the key to be refused', async () => (await status()) === 403, 1500)
    await becomes(running, 'stopped')
    // A request that had begun before the suspension.
    await pool.query(`UPDATE instances SET desired_state = 'running' WHERE id = $1`, [running])
    await becomes(running, 'stopped')

    expect((await admin('resume-org', id)).output).toContain('active')
    await until('the key to work', async () => (await status()) === 200, 1500)
    await becomes(running, 'running')
    expect(await stateOf(stopped)).toBe('stopped')
    const { body } = await chowder.call('GET', '/v1/organization/events?order=asc&type=organization.*&limit=100', {
      key,
    })
    const types = body.map(({ type, actor }: { type: string; actor: { type: string } }) => [type, actor.type])
    expect(types).toEqual(
      expect.arrayContaining([
        ['organization.suspend', 'operator'],
        ['organization.resume', 'operator'],
      ]),
    )
    const history = await chowder.call('GET', `/v1/instances/${running}/events?order=asc`, { key })
    expect(history.body).toContainEqual(
      expect.objectContaining({ type: 'instance.stop', reason: 'The operator suspended the organization.' }),
    )
  })

  test('S30: delete-org asks for the name, deletes the organization with all its data, and list-orgs no longer shows it', async () => {
    const { id, key } = await chowder.signUp()
    const { body } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })
    const unconfirmed = await admin('delete-org', id)
    expect([unconfirmed.code, unconfirmed.error]).toEqual([1, expect.stringContaining('--yes')])
    expect((await chowder.call('GET', '/v1/organization', { key })).status).toBe(200)
    answer = 'acme'
    expect((await admin('delete-org', id)).error).toContain('another name')
    expect(questions.at(-1)).toContain(`Acme (${id}) with 1 instances`)
    answer = 'Acme'
    const { code, output } = await admin('delete-org', id)
    answer = null
    expect([code, output]).toEqual([
      0,
      `Acme (${id}) is deleted. Erased keys: 1, erased secrets: 1, agents that a worker destroys: 1.`,
    ])
    await until(
      'the key to be refused',
      async () => (await chowder.call('GET', '/v1/organization', { key })).status === 401,
      1500,
    )
    const { rows } = await chowder.database.pool.query('SELECT desired_state FROM instances WHERE id = $1', [body.id])
    expect(rows).toEqual([{ desired_state: 'terminated' }])
    expect((await admin('list-orgs')).output).not.toContain(id)
    expect((await admin('delete-org', id, '--yes')).error).toContain('There is no organization')
  })

  test.each([
    [[], 'usage'],
    [['crash-org', unknownId], 'There is no command "crash-org". There is: create-org, signup-token, list-orgs, '],
    [['list-orgz'], 'There is no command "list-orgz". Did you mean list-orgs?'],
    [['set-limit', unknownId, '-3'], 'There is no option -3.'],
    [['set-tier', unknownId, 'gold'], 'There is no tier "gold". Use one of: shrimp, crab, lobster, whale.'],
    [['set-tier', unknownId, 'whale'], 'There is no organization'],
    [['set-limit', unknownId, '1.5'], 'A limit is a number'],
    [['delete-org', 'Nobody'], 'There is no organization "Nobody"'],
    [['suspend-org'], 'suspend-org needs <org>.'],
    [['resume-org', unknownId, 'now'], 'does not take "now"'],
    [['list-orgs', '--yes'], 'list-orgs does not take --yes'],
    [['list-orgs', '--jsn'], 'There is no option --jsn. Did you mean --json?'],
    [['list-instances', '--status', 'dead'], 'There is no status "dead"'],
    [['show', unknownId], 'There is no instance'],
    [['create-org', ' '], '1 to 255 characters'],
  ])('%j ends with 1 and says why in a line without a stack', async (args, said) => {
    const { code, output, error } = await admin(...args)
    expect([code, output, error]).toEqual([1, '', expect.stringContaining(said)])
  })
})

test('--help and a wrong command say what there is, without a database', async () => {
  const help = await admin({}, '--help')
  expect([help.code, help.output]).toEqual([0, expect.stringContaining('create-key <org>')])
  const wrong = await admin({}, 'crash-org')
  expect([wrong.code, wrong.output, wrong.error]).toEqual([1, '', expect.stringContaining('There is no command')])
  expect(wrong.error).not.toContain('    at ')
})

test('it works beside a running Chowder and without one, and leaves the embedded database as it was', async () => {
  const home = await mkdtemp(join(tmpdir(), 'chowder-admin-'))
  await chmod(home, 0o711)
  const dataDir = join(home, 'data')
  const env = { CHOWDER_DATA_DIR: dataDir }
  expect(await admin(env, 'list-orgs')).toMatchObject({ code: 1, error: expect.stringContaining('no database') })

  const log = pino({ level: 'silent' })
  const chowder = await startEmbeddedPostgres({ dataDir, log, durable: false })
  const pool = new pg.Pool(chowder.connection).on('error', () => {}) // PostgreSQL ends before its connections do
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
  expect(words((await admin(env, 'list-orgs')).output)[1]).toEqual([unknownId, 'Acme', 'crab', '0/10', 'active', day])
  const again = await startEmbeddedPostgres({ dataDir, log, durable: false })
  await again.stop()
  await rm(home, { recursive: true, force: true })
}, 120_000)
