import { execFile } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { examine } from '#commands/doctor/examine.ts'
import type { Finding } from '#commands/doctor/finding.ts'
import { describeFindings, findingsAsData } from '#commands/doctor/report.ts'
import { openForOperator } from '#composition/database.ts'
import { channelConfigPlace } from '#instances/gateway/configuration.ts'
import { freePort } from '#platform/free-port.ts'
import { createVault } from '#platform/secrets.ts'
import { type Config, loadConfig } from '#settings/config.ts'
import { removeDataDir, startChowder } from '../../support/chowder-process.ts'
import { compiledOnce } from '../../support/compile-cache.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({ config: { browser: { enabled: false } } })
const driver = new FakeDriver(() => gateway.endpoint)
let organization: { id: string; key: string }

const chowder = await openTestChowder({ sandboxes: driver })
const relayPort = await freePort()
const deps = {
  config: loadConfig({ RELAY_PORT: `${relayPort}` }),
  db: chowder.deps.db,
  regions: [{ ...chowder.deps, relay: { url: undefined, port: relayPort } }],
  vault: chowder.vault,
  queue: chowder.queue,
}
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const query = (text: string, ...values: unknown[]) => chowder.database.pool.query(text, values)
const call = (method: 'GET' | 'POST' | 'DELETE', url: string, body?: unknown) =>
  chowder.call(method, url, { key: organization.key, ...(body !== undefined && { body }) })
const look = () => examine(deps)

const isAtRest = async () =>
  (await query('SELECT 1 FROM instances WHERE observed_generation < generation')).rowCount === 0

/** Runs `act` and a worker until no row is due. */
async function withWorker<T>(act: () => Promise<T>): Promise<T> {
  const worker = await chowder.startWorker()
  try {
    const answer = await act()
    await until('no row to be due', isAtRest)
    return answer
  } finally {
    await worker.stop()
  }
}

const running = (): Promise<string> =>
  withWorker(async () => (await call('POST', '/v1/instances', { name: 'a' })).body.id)

let id: string

beforeEach(async () => {
  organization = await chowder.signUp()
  id = await running()
})
afterEach(async () => {
  driver.heal()
  await query('UPDATE provider_keys SET refused_at = NULL')
  await query('TRUNCATE events, channels, skills, idempotency_keys, instances CASCADE')
  await query('UPDATE organizations SET instance_count = 0')
  await query("DELETE FROM processes WHERE role = 'worker'")
  driver.sandboxes.clear()
})

test('finds nothing on a healthy system', async () => {
  await withWorker(() => call('POST', `/v1/instances/${id}/stop`))
  await running()
  const { id: deleted } = await withWorker(async () => (await call('POST', '/v1/instances', { name: 'b' })).body)
  await withWorker(() => call('DELETE', `/v1/instances/${deleted}`))
  expect(await look()).toEqual([])
})

/** Gives the instance a channel that its gateway has left out, and a number of starts without ten healthy minutes. */
async function leaveOut(attempts: number): Promise<void> {
  const sealed = chowder.vault.seal('{}', channelConfigPlace(id, 'telegram'))
  await query(
    `INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'telegram', true, $2)`,
    id,
    sealed,
  )
  await query('UPDATE instances SET attempts = $2 WHERE id = $1', id, attempts)
  gateway.methods['channels.status'] = () => ({
    channels: { telegram: { lastError: 'gateway restart-loop breaker tripped: 3 unclean boot(s) within 300000ms' } },
    channelAccounts: { telegram: [{ configured: true, running: false, lifecycle: 'stopped', probe: { ok: true } }] },
  })
}

/** Each fault with the words of its finding. */
const faults: { what: string; says: RegExp; plant(): Promise<unknown> }[] = [
  {
    what: 'a relay that does not answer, while workers run',
    says: /At http:\/\/127\.0\.0\.1:\d+, where agents ask models, nothing listens/,
    plant: () => query("INSERT INTO processes (id, role) VALUES ($1, 'worker')", randomUUID()),
  },
  {
    what: 'I1: a sandbox without an instance',
    says: /has no instance/,
    plant: async () => driver.create(specOf(randomUUID()), AbortSignal.timeout(5000)),
  },
  {
    what: 'I1: a delete that fails again and again',
    says: /The delete of the instance .* has failed/,
    plant: async () => {
      await call('DELETE', `/v1/instances/${id}`)
      await query(
        `UPDATE instances SET attempts = 40, next_attempt_at = now() + interval '10 minutes' WHERE id = $1`,
        id,
      )
    },
  },
  {
    what: 'I2: a due row that no worker takes',
    says: /no worker has taken it/,
    plant: () =>
      query(
        `UPDATE instances SET generation = generation + 1, next_attempt_at = now() - interval '1 hour',
             lease_until = now() - interval '1 hour' WHERE id = $1`,
        id,
      ),
  },
  {
    what: 'I7: a secret that cannot be unsealed',
    says: /instances\/.*\/sealed_token cannot be unsealed/,
    plant: () =>
      query(
        'UPDATE instances SET sealed_token = $2 WHERE id = $1',
        id,
        chowder.vault.seal('x', `instances/${randomUUID()}/sealed_token`),
      ),
  },
  {
    what: 'I7: a secret that is not sealed',
    says: /instances\/.*\/sealed_config is not sealed/,
    plant: () => query(`UPDATE instances SET sealed_config = '{"a": 1}' WHERE id = $1`, id),
  },
  {
    what: 'a provider key that its provider refuses',
    says: /anthropic has refused the key of the organization/,
    plant: () => query('UPDATE provider_keys SET refused_at = now() WHERE organization_id = $1', organization.id),
  },
  {
    what: 'a channel with an error',
    says: /The channel telegram of the instance .* has an error: The token is wrong/,
    plant: () =>
      query(
        `INSERT INTO channels (instance_id, channel, enabled, sealed_config, error_message)
         VALUES ($1, 'telegram', true, $2, 'The token is wrong.')`,
        id,
        chowder.vault.seal('{}', `channels/${id}/telegram/sealed_config`),
      ),
  },
  {
    what: 'a channel that OpenClaw left out after unclean ends',
    says: /The channel telegram of the instance .* is off/,
    plant: () => leaveOut(3),
  },
  {
    what: 'a platform that cannot be reached',
    says: /cannot be listed/,
    plant: async () => driver.fail({ method: 'list', times: 1000 }),
  },
]

test.each(faults)('$what is found', async ({ says, plant }) => {
  await plant()
  const found = await look()
  expect(found.map(({ what }) => what)).toContainEqual(expect.stringMatching(says))
  expect(found.every(({ whatToDo }) => whatToDo.length > 10)).toBe(true)
})

test('a gateway that does not answer is no finding of its channels, and one that has been healthy is not asked', async () => {
  await leaveOut(3)
  gateway.behaviour.onCall = () => {
    throw new Refusal({ code: 'UNAVAILABLE', message: 'starting' })
  }
  expect(await look()).toEqual([])
  gateway.behaviour.onCall = () => {}
  gateway.calls.length = 0
  await query('UPDATE instances SET attempts = 0')
  expect(await look()).toEqual([])
  expect(gateway.calls).toEqual([])
})

test.each([
  ['instances_generations', 'observed_generation = generation + 1'],
  ['instances_generations', 'observed_generation = -1'],
  ['instances_attempts_count', 'attempts = -1'],
  ['instances_terminated', "desired_state = 'terminated'"],
  ['instances_terminated', 'terminated_at = now()'],
])('%s: the database refuses %s', async (constraint, change) => {
  await expect(query(`UPDATE instances SET ${change}`)).rejects.toMatchObject({ constraint })
})

test('values that another accepted key has sealed are found, until they are sealed with the first', async () => {
  const first = randomBytes(32)
  const other = randomBytes(32)
  const sealed = createVault(other).seal('x', `instances/${id}/sealed_token`)
  await query('UPDATE instances SET sealed_token = $2, sealed_relay_token = NULL WHERE id = $1', id, sealed)
  await query('TRUNCATE provider_keys')
  const found = async (...keys: Buffer[]) =>
    (await examine({ ...deps, vault: createVault(keys) })).map(({ what }) => what)
  expect(await found(other)).toEqual([])
  expect(await found(other, first)).toEqual([])
  expect(await found(first, other)).toEqual([
    expect.stringMatching(/^Values of instances\.sealed_token are not sealed with/),
  ])
  expect(await found(first)).toEqual([expect.stringMatching(/instances\/.*\/sealed_token cannot be unsealed/)])
})

function specOf(sandbox: string) {
  const resources = { memoryMb: 1, cpus: 1, pids: 1, diskMb: 0 }
  return {
    id: sandbox,
    organizationId: sandbox,
    release: 'v1',
    command: () => [],
    env: () => ({}),
    resources,
    labels: {},
  }
}

test('an idle connection of a command that is lost is opened again', async () => {
  const { user, password, host, port, database } = chowder.database.connection
  const url = `postgresql://${user}:${password}@${encodeURIComponent(host ?? '')}:${port}/${database}`
  const opened = await openForOperator({ DATABASE_URL: url } as Config, 'doctor')
  const ended = await query(
    `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1`,
    'chowder-doctor',
  )
  expect(ended.rowCount).toBe(1)
  await until('the connection to be lost', () => opened.pool.totalCount === 0)
  expect((await opened.db.execute('SELECT 1 AS one')).rows).toEqual([{ one: 1 }])
  await opened.close()
})

test('A5: an API that others reach by any host is found, until somebody decides', async () => {
  const found = async (env: NodeJS.ProcessEnv) =>
    (await examine({ ...deps, config: loadConfig(env) })).filter(({ area }) => area === 'access')
  expect(await found({})).toEqual([])
  expect(await found({ HOST: '0.0.0.0', CHOWDER_ALLOWED_HOSTS: '*' })).toEqual([])
  expect(await found({ HOST: '0.0.0.0', CHOWDER_PUBLIC_URL: 'https://agents.example.com' })).toEqual([])
  const [finding] = await found({ HOST: '0.0.0.0' })
  expect(finding?.whatToDo).toContain('CHOWDER_ALLOWED_HOSTS')
  const report = describeFindings(loadConfig({ HOST: '0.0.0.0' }), finding ? [finding] : [])
  expect(report).toMatch(
    /✗ {2}access .*the API answers to any host; sign-up requires the token\n +- The API listens on an address/,
  )
  expect(describeFindings(loadConfig({}), [])).toMatch(/✓ {2}access .*answers to localhost, 127\.0\.0\.1, \[::1\]/)
})

test('T1: agents that share a user are found once there is more than one organization', async () => {
  const found = async () => (await look()).filter(({ area }) => area === 'access').map(({ whatToDo }) => whatToDo)
  await chowder.signUp()
  expect(await found()).toEqual([])
  driver.isForOneOrganization = true
  try {
    expect(await found()).toEqual([expect.stringContaining('LOCAL_ISOLATION=jail')])
    await query('UPDATE organizations SET deleted_at = now() WHERE id <> $1', organization.id)
    expect(await found()).toEqual([])
  } finally {
    driver.isForOneOrganization = false
  }
})

describe('npm run doctor', () => {
  const run = promisify(execFile)
  const main = fileURLToPath(import.meta.resolve('#commands/doctor.ts'))
  let dataDir: string

  beforeAll(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'chowder-doctor-'))
    await chmod(dataDir, 0o711)
  })
  afterAll(() => removeDataDir(dataDir))

  const doctor = (...options: string[]) =>
    run(process.execPath, [main, ...options], {
      env: { ...compiledOnce, PATH: process.env.PATH, HOME: dataDir, CHOWDER_DATA_DIR: dataDir },
      timeout: 60_000,
    }).then(
      ({ stdout, stderr }) => ({ code: 0, text: stdout, aside: stderr }),
      ({ code, stdout, stderr }: { code: number; stdout: string; stderr: string }) => ({
        code,
        text: stdout,
        aside: stderr,
      }),
    )

  test('calls nothing good that it has not looked at, and names a wrong word', async () => {
    const finding: Finding = { area: 'schema', what: 'The schema is behind.', whatToDo: 'Run npm run migrate.' }
    const marks = describeFindings(loadConfig({}), [finding]).match(/^\S {2}\w+/gm)
    expect(marks?.slice(0, 2)).toEqual(['✗  schema', '–  secrets'])
    expect(marks?.some((mark) => mark.startsWith('✓'))).toBe(false)
    expect(findingsAsData(loadConfig({}), [finding]).looked_at.map(({ area }) => area)).toEqual(['schema'])
    const wrong = { code: 2, text: '', aside: 'There is no option --jsonn. Did you mean --json?\n' }
    expect(await doctor('--jsonn')).toEqual(wrong)
    expect((await doctor('fix')).aside).toMatch(/^There is no use for fix\.\nusage: npm run doctor/)
  })

  test('fails where there is no Chowder', async () => {
    const { code, aside } = await doctor()
    expect([code, aside]).toEqual([2, expect.stringContaining('There is no database in')])
  })

  test('checks beside a running Chowder and without one', { timeout: 180_000 }, async () => {
    const process = await startChowder({ dataDir, role: 'api' })
    const withoutWorker = await doctor()
    expect(withoutWorker.code).toBe(1)
    expect(withoutWorker.text).toMatch(
      /^✓ {2}schema .*\n✓ {2}secrets [\s\S]*\n✗ {2}queue .*\n +- No worker runs\.\n +Start one with npm start -- worker .*\n[\s\S]*\n1 finding\.\n$/,
    )
    const answer = await fetch(`${process.url}/v1/organization/signup`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"name": "Acme"}',
    })
    expect(answer.status).toBe(201)
    await process.kill('SIGTERM')
    const healthy = await doctor()
    expect(healthy.code).toBe(0)
    expect(healthy.text).toMatch(
      /^✓ {2}schema .*\n✓ {2}secrets [\s\S]*\n✓ {2}releases .*\n\nEverything is as it must be.\n$/,
    )
    await rm(join(dataDir, 'secret-key'))
    const { code, text } = await doctor()
    const missing =
      /✗ {2}secrets .*\n +- The secret key is missing.*\n +Restore the key from a backup[\s\S]*\n1 finding\.\n$/
    expect([code, text]).toEqual([1, expect.stringMatching(missing)])
    expect(JSON.parse((await doctor('--json')).text)).toMatchObject({
      healthy: false,
      looked_at: expect.arrayContaining([{ area: 'secrets', expected: expect.any(String), findings: 1 }]),
      findings: [{ area: 'secrets', what: expect.stringContaining('The secret key is missing') }],
    })
  })
})
