import { execFile } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { sql } from 'drizzle-orm'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { examine, repair } from '#commands/doctor/examine.ts'
import type { DoctorDeps, Finding } from '#commands/doctor/finding.ts'
import { searchInstances } from '#commands/doctor/instances.ts'
import { type Positions, readLastPart, rowsOfAPart, startPart, storeLastPart } from '#commands/doctor/part.ts'
import { describeFindings, findingsAsData } from '#commands/doctor/report.ts'
import { openForOperator } from '#composition/database.ts'
import { freePort } from '#platform/free-port.ts'
import { createVault } from '#platform/secrets.ts'
import { type Config, loadConfig } from '#settings/config.ts'
import { removeDataDir, startChowder } from '../support/chowder-process.ts'
import { compiledOnce } from '../support/compile-cache.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { startFakeGateway } from '../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const gateway = await startFakeGateway({ config: { browser: { enabled: false } } })
const driver = new FakeDriver(() => gateway.endpoint)
const quick = { secondLookAfterMs: 20, repairTimeoutMs: 10_000 }
let chowder: TestChowder
let deps: DoctorDeps
let organization: { id: string; key: string }

beforeAll(async () => {
  chowder = await openTestChowder({ sandboxes: driver })
  const relayPort = await freePort()
  deps = {
    config: loadConfig({ RELAY_PORT: `${relayPort}` }),
    db: chowder.deps.db,
    regions: [{ ...chowder.deps, relay: { url: undefined, port: relayPort } }],
    vault: chowder.vault,
    queue: chowder.queue,
  }
})
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const query = (text: string, ...values: unknown[]) => chowder.database.pool.query(text, values)
const call = (method: 'GET' | 'POST' | 'DELETE', url: string, body?: unknown) =>
  chowder.call(method, url, { key: organization.key, ...(body !== undefined && { body }) })
const statusOf = async (id: string) => (await call('GET', `/v1/instances/${id}`)).body.status
const rowOf = async (id: string) => (await query('SELECT * FROM instances WHERE id = $1', id)).rows[0]
const look = () => examine(deps, quick)

const isAtRest = async () =>
  (await query('SELECT 1 FROM instances WHERE observed_generation < generation')).rowCount === 0

/** Runs `act` and a worker until no row is due. Only the doctor may repair anything between these runs. */
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

/** Each fault with the words of its finding; `isMended` checks its repair, if it has one. */
const faults: { what: string; says: RegExp; plant(): Promise<unknown>; isMended?(): Promise<void> }[] = [
  {
    what: 'a relay that does not answer, while workers run',
    says: /At http:\/\/127\.0\.0\.1:\d+, where agents ask models, nobody listens/,
    plant: () => query("INSERT INTO processes (id, role) VALUES ($1, 'worker')", randomUUID()),
  },
  {
    what: 'I1: a sandbox without an instance',
    says: /has no instance/,
    plant: async () => driver.create(specOf(randomUUID()), AbortSignal.timeout(5000)),
    isMended: async () => expect([...driver.sandboxes.keys()]).toEqual([id]),
  },
  {
    what: 'I1: an instance that is marked as running without a sandbox that runs',
    says: /is marked as running, and its sandbox is stopped/,
    plant: async () => driver.die(id),
    isMended: async () => expect([await statusOf(id), driver.sandboxes.get(id)?.running]).toEqual(['running', true]),
  },
  {
    what: 'I1: a sandbox of a terminated instance',
    says: /is running, and the instance is terminated/,
    plant: () =>
      query(
        `UPDATE instances SET desired_state = 'terminated', ready_at = NULL, terminated_at = now(), generation = 9,
         observed_generation = 9 WHERE id = $1`,
        id,
      ).then(() => query('UPDATE organizations SET instance_count = 0 WHERE id = $1', organization.id)),
    isMended: async () => expect(driver.sandboxes.size).toBe(0),
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
    isMended: async () => expect(driver.sandboxes.size).toBe(0),
  },
  {
    what: 'I2: a lease that is too long',
    says: /The lease of the instance .* ends at .*: no lease lasts that long/,
    plant: () => query(`UPDATE instances SET lease_until = now() + interval '1 day' WHERE id = $1`, id),
    isMended: async () => expect((await rowOf(id)).lease_until.getTime()).toBeLessThan(Date.now() + 40_000),
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
    isMended: async () => expect((await rowOf(id)).observed_generation).toBe((await rowOf(id)).generation),
  },
  {
    what: 'I2: an observed generation that is too high',
    says: /its observed generation is higher than its generation/,
    plant: () => query('UPDATE instances SET observed_generation = generation + 5 WHERE id = $1', id),
    isMended: async () => expect((await rowOf(id)).observed_generation).toBe((await rowOf(id)).generation),
  },
  {
    what: 'I3: a wrong count',
    says: /says 7 instances, and there are 1/,
    plant: () => query('UPDATE organizations SET instance_count = 7 WHERE id = $1', organization.id),
    isMended: async () => expect((await call('GET', '/v1/organization')).body.instance_count).toBe(1),
  },
  {
    what: 'I4: an idempotency answer that is kept too long',
    says: /expired more than 60 min ago/,
    plant: () =>
      query(
        `INSERT INTO idempotency_keys (organization_id, key, request_hash, sealed_answer, expires_at)
             VALUES ($1, 'k', '\\x00', $2, now() - interval '2 hours')`,
        organization.id,
        chowder.vault.seal('{}', `idempotency_keys/${organization.id}.k/sealed_answer`),
      ),
    isMended: async () => expect((await query('SELECT 1 FROM idempotency_keys')).rowCount).toBe(0),
  },
  {
    what: 'I5: a chain of events that is broken',
    says: /begins with running, and the one before it ended with stopped/,
    plant: () =>
      query(
        `INSERT INTO events (organization_id, instance_id, type, actor_type, from_status, to_status)
             VALUES ($1, $2, 'x', 'worker', 'running', 'stopped'), ($1, $2, 'x', 'worker', 'running', 'running')`,
        organization.id,
        id,
      ),
  },
  {
    what: 'I5: a row whose status is not that of its last event',
    says: /is running, and its last event ends with stopped/,
    plant: () =>
      query(
        `INSERT INTO events (organization_id, instance_id, type, actor_type, from_status, to_status)
             VALUES ($1, $2, 'x', 'worker', 'running', 'stopped')`,
        organization.id,
        id,
      ),
  },
  {
    what: 'I6: an instance without the event of its creation',
    says: /has no event of its creation/,
    plant: async () => {
      await query(`DELETE FROM events WHERE instance_id = $1 AND from_status IS NULL`, id)
      await query(
        `INSERT INTO events (organization_id, type, actor_type, created_at) VALUES ($1, 'x', 'worker', now() - interval '1 day')`,
        organization.id,
      )
    },
  },
  {
    what: 'I7: a secret that cannot be unsealed',
    says: /instances\.sealed_token of .* cannot be unsealed/,
    plant: () =>
      query(
        'UPDATE instances SET sealed_token = $2 WHERE id = $1',
        id,
        chowder.vault.seal('x', `instances/${randomUUID()}/sealed_token`),
      ),
  },
  {
    what: 'I7: a secret that is not sealed',
    says: /instances\.sealed_config of .* is not sealed/,
    plant: () => query(`UPDATE instances SET sealed_config = '{"a": 1}' WHERE id = $1`, id),
  },
  {
    what: 'a platform that cannot be reached',
    says: /cannot be listed/,
    plant: async () => driver.fail({ method: 'list', times: 1000 }),
  },
]

describe.each(faults)('$what', ({ says, plant, isMended }) => {
  test('is found', async () => {
    await plant()
    const found = await look()
    expect(found.map(({ what }) => what)).toContainEqual(expect.stringMatching(says))
    expect(found.every(({ whatToDo }) => whatToDo.length > 10)).toBe(true)
  })

  test.runIf(isMended)('is repaired', async () => {
    await plant()
    const found = (await look()).filter(({ what }) => says.test(what))
    const lines: string[] = []
    // Without a worker, which would find some of the faults by itself. Then a worker works on the rows that are due.
    await repair(deps, found, (line) => lines.push(line), { secondLookAfterMs: 1, repairTimeoutMs: 1 })
    expect(lines).toEqual([expect.stringMatching(/^repaired: /)])
    expect(await withWorker(() => repair(deps, [], () => {}, quick))).toEqual([])
    await isMended?.()
  })
})

test('values that another accepted key has sealed are found, until they are sealed with the first', async () => {
  const first = randomBytes(32)
  const other = randomBytes(32)
  const sealed = createVault(other).seal('x', `instances/${id}/sealed_token`)
  await query('UPDATE instances SET sealed_token = $2, sealed_relay_token = NULL WHERE id = $1', id, sealed)
  await query('TRUNCATE provider_keys')
  const found = async (...keys: Buffer[]) =>
    (await examine({ ...deps, vault: createVault(keys) }, quick)).map(({ what }) => what)
  expect(await found(other)).toEqual([])
  expect(await found(other, first)).toEqual([])
  expect(await found(first, other)).toEqual([
    expect.stringMatching(/^Values of instances\.sealed_token are not sealed with/),
  ])
  expect(await found(first)).toEqual([expect.stringMatching(/instances\.sealed_token of .* cannot be unsealed/)])
})

test('I3: every wrong count is found, also beside negative ones', async () => {
  const others: string[] = []
  while (others.length < 4) others.push((await chowder.signUp()).id)
  for (const [index, count] of [300, 5, -200, 5].entries())
    await query('UPDATE organizations SET instance_count = $2 WHERE id = $1', others.sort()[index], count)
  const found = (await look()).map(({ what }) => what)
  expect(found).toHaveLength(4)
  expect(found).toContainEqual(expect.stringContaining('says -200 instances, and there are 0'))
})

test('a row that a worker holds is not repaired', async () => {
  driver.die(id)
  const found = (await look()) as Finding[]
  await query(`UPDATE instances SET lease_until = now() + interval '20 seconds' WHERE id = $1`, id)
  const before = await rowOf(id)
  const lines: string[] = []
  await repair(deps, found, (line) => lines.push(line), { secondLookAfterMs: 1, repairTimeoutMs: 1 })
  expect(lines).toEqual([expect.stringMatching(/^not repaired, a worker holds it/)])
  expect(await rowOf(id)).toEqual(before)
})

describe('a part of large tables', () => {
  const more = 2 * rowsOfAPart + 1

  /** Copies of the running instance, all stopped, and their events, and nothing to find but what `plant` does to them. */
  async function copies(): Promise<string[]> {
    await query('ALTER TABLE instances DISABLE TRIGGER USER')
    const { rows } = await query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, desired_state,
                              observed_generation, sealed_token, created_at)
       SELECT gen_random_uuid(), organization_id, 'copy', model_provider, sandbox_driver, openclaw_version, 'stopped',
              generation, '', created_at
       FROM instances, generate_series(1, $2::int) WHERE id = $1 RETURNING id`,
      id,
      more - 1,
    )
    await query('ALTER TABLE instances ENABLE TRIGGER USER')
    await query(
      `INSERT INTO events (organization_id, instance_id, type, actor_type, from_status, to_status)
       SELECT organization_id, id, 'x', 'worker', from_status, to_status FROM instances,
         (VALUES (NULL, 'provisioning'), ('provisioning', 'running'), ('running', 'stopped')) AS x (from_status, to_status)
       WHERE name = 'copy'`,
    )
    await query('UPDATE organizations SET instance_count = $2 WHERE id = $1', organization.id, more)
    return rows.map((row: { id: string }) => row.id)
  }

  /** A run of a part, and where the next one goes on. */
  async function lookAtPart(from: Positions) {
    const part = startPart(from)
    return { found: await examine({ ...deps, part }, quick), ...part }
  }

  test('is read from where the run before ended, until all is read', async () => {
    const ids = (await copies()).sort()
    await query('UPDATE instances SET attempts = -1 WHERE id = ANY($1)', ids)
    const found = new Set<string>()
    const read: number[] = []
    let from: Positions = {}
    for (let run = 0; run < 3; run += 1) {
      const part = startPart(from)
      const pages = searchInstances({ ...deps, part }, 'impossibleRows', sql`attempts < 0`)
      let inThisRun = 0
      for await (const row of pages) {
        found.add(row.id)
        inThisRun += 1
      }
      read.push(inThisRun)
      expect(part.isCut).toBe(true)
      from = part.reached
    }
    expect([...found].sort()).toEqual(ids)
    expect(read.every((rows) => rows <= rowsOfAPart)).toBe(true)
    expect(from, 'after the last row it begins with the first').toEqual({})
  })

  const whatOf = (found: Finding[]) => found.map(({ what }) => what)

  test('finds in some run what a run of all finds, and can begin where the run before began', async () => {
    const ids = (await copies()).sort()
    expect(await look()).toEqual([])
    const [first, last] = [ids[0], ids.at(-1)]
    await query('UPDATE instances SET observed_generation = generation + 5 WHERE id = ANY($1)', [first, last])
    await query(`UPDATE instances SET sealed_config = '{"a": 1}' WHERE id = $1`, last)
    const ofLast = [
      expect.stringContaining(`${last} is in an impossible state`),
      expect.stringContaining(`instances.sealed_config of ${last} is not sealed`),
    ]
    expect(whatOf(await look())).toEqual([expect.stringContaining(`${first} is in an impossible`), ...ofLast])
    const one = await lookAtPart({})
    expect(whatOf(one.found)).toEqual([expect.stringContaining(`${first} is in an impossible state`)])
    const { db } = deps
    await storeLastPart(db, one)
    const { from, reached } = await readLastPart(db)
    let positions = reached
    expect(whatOf((await lookAtPart(from)).found), 'as a run with --fix does').toEqual(whatOf(one.found))
    const found: string[] = []
    for (let run = 0; run < 2; run += 1) {
      const part = await lookAtPart(positions)
      expect(part.isCut).toBe(true)
      found.push(...whatOf(part.found))
      positions = part.reached
    }
    expect(new Set(found)).toEqual(
      new Set(ofLast.map((expected) => found.find((what) => expected.asymmetricMatch(what)))),
    )
    expect(new Set(found).size).toBe(2)
  })

  test('goes on after more findings than it lists, which nobody can repair', async () => {
    const ids = (await copies()).sort()
    await query(`DELETE FROM events WHERE instance_id = ANY($1) AND from_status = 'provisioning'`, ids)
    const one = await lookAtPart({})
    const two = await lookAtPart(one.reached)
    expect(two.found.length).toBeGreaterThan(250)
    const texts = new Set(whatOf(one.found))
    expect(whatOf(two.found).filter((what) => !what.startsWith('There may be more') && texts.has(what))).toEqual([])
  })

  test('has the beginning of the list of sandboxes', async () => {
    const ids = await copies()
    for (const copy of ids.slice(0, rowsOfAPart)) await driver.create(specOf(copy), AbortSignal.timeout(5000))
    const orphan = randomUUID()
    await driver.create(specOf(orphan), AbortSignal.timeout(5000))
    expect(whatOf(await look())).toEqual([expect.stringContaining(`The sandbox ${orphan} has no instance`)])
    expect((await lookAtPart({})).found).toEqual([])
  })

  test('has all that waits, fails or is held, wherever its rows are', async () => {
    const last = (await copies()).sort().at(-1)
    const times = "next_attempt_at = now() - interval '1 hour', lease_until = now() - interval '1 hour'"
    await query(`UPDATE instances SET generation = generation + 1, ${times} WHERE id = $1`, last)
    expect((await lookAtPart({})).found.map(({ what }) => what)).toEqual([
      expect.stringContaining(`The instance ${last} should be stopped, and no worker has taken it`),
    ])
  })

  test('says that it is a part, and is all of small tables', async () => {
    const small = await lookAtPart({})
    expect([small.found, small.isCut, small.reached]).toEqual([[], false, {}])
    const config = loadConfig({})
    expect(describeFindings(config, [])).toMatch(/\n\nEverything is as it must be\.$/)
    expect(describeFindings(config, [], true)).toMatch(
      /\n\nWhat was read is as it must be\.\nOf tables with more than 1000 rows a part was read; .* -- --all$/,
    )
    expect([findingsAsData(config, []).read_all, findingsAsData(config, [], true).read_all]).toEqual([true, false])
  })
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
    (await examine({ ...deps, config: loadConfig(env) }, quick)).filter(({ area }) => area === 'access')
  expect(await found({})).toEqual([])
  expect(await found({ HOST: '0.0.0.0', CHOWDER_ALLOWED_HOSTS: '*' })).toEqual([])
  expect(await found({ HOST: '0.0.0.0', CHOWDER_PUBLIC_URL: 'https://agents.example.com' })).toEqual([])
  const [finding] = await found({ HOST: '0.0.0.0' })
  expect(finding?.whatToDo).toContain('CHOWDER_ALLOWED_HOSTS')
  const report = describeFindings(loadConfig({ HOST: '0.0.0.0' }), finding ? [finding] : [])
  expect(report).toMatch(
    /✗ {2}access .*the API answers to any host; sign-up takes the token\n +- The API listens on an address/,
  )
  expect(describeFindings(loadConfig({}), [])).toMatch(/✓ {2}access .*answers to localhost, 127\.0\.0\.1, \[::1\]/)
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
    const wrong = { code: 2, text: '', aside: 'There is no option --fixx. Did you mean --fix?\n' }
    expect(await doctor('--fixx')).toEqual(wrong)
    expect((await doctor('fix')).aside).toMatch(/^There is no use for fix\.\nusage: npm run doctor/)
  })

  test('fails where there is no Chowder', async () => {
    const { code, aside } = await doctor()
    expect([code, aside]).toEqual([2, expect.stringContaining('There is no database in')])
  })

  test('checks beside a running Chowder and without one, and repairs', { timeout: 180_000 }, async () => {
    const process = await startChowder({ dataDir, role: 'api' })
    const withoutWorker = await doctor()
    expect(withoutWorker.code).toBe(1)
    expect(withoutWorker.text).toMatch(
      /^✓ {2}schema .*\n✓ {2}secrets [\s\S]*\n✗ {2}queue .*\n +- No worker runs\.\n +Start one with npm start -- worker .*\n[\s\S]*\n1 finding\.\n$/,
    )
    expect(withoutWorker.aside, 'what it does when it takes long').toMatch(
      /^(after \d+ s: looking at .*\n)*after \d+ s: looking again at what it found\n/,
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
      /^✓ {2}schema .*\n✓ {2}secrets [\s\S]*\n✓ {2}history .*\n\nEverything is as it must be.\n$/,
    )
    await rm(join(dataDir, 'secret-key'))
    const { code, text } = await doctor('--fix')
    const missing =
      /✗ {2}secrets .*\n +- The secret key is missing.*\n +Restore the key from a backup[\s\S]*\n1 finding\.\n$/
    expect([code, text]).toEqual([1, expect.stringMatching(missing)])
    expect(JSON.parse((await doctor('--json')).text)).toMatchObject({
      healthy: false,
      looked_at: expect.arrayContaining([{ area: 'secrets', expected: expect.any(String), findings: 1 }]),
      findings: [{ area: 'secrets', what: expect.stringContaining('The secret key is missing'), repairable: false }],
    })
  })
})
