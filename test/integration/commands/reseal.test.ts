import { spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { getTableColumns, getTableName, is } from 'drizzle-orm'
import { PgTable } from 'drizzle-orm/pg-core'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { findSignupToken } from '#api/organization/signup-token.ts'
import { reseal } from '#commands/admin/reseal.ts'
import { openVault } from '#composition/vault.ts'
import * as hookSchema from '#database/hook-schema.ts'
import * as responseSchema from '#database/response-schema.ts'
import * as scheduleSchema from '#database/schedule-schema.ts'
import * as schema from '#database/schema.ts'
import { findSealedColumns, replaceSealed, sealedPages } from '#database/sealed-columns.ts'
import * as webhookSchema from '#database/webhook-schema.ts'
import { channelConfigPlace, skillSettingsPlace } from '#instances/gateway/configuration.ts'
import { newId } from '#platform/ids.ts'
import { createVault, keyIdOf, type Place, sealedPrefix, type Vault } from '#platform/secrets.ts'
import { loadConfig } from '#settings/config.ts'
import { compiledOnce } from '../../support/compile-cache.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'
import { cloneDatabase, type TestDatabase, urlOf } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const program = fileURLToPath(import.meta.resolve('#commands/admin.ts'))
const text = (keys: readonly Buffer[]) => keys.map((key) => key.toString('base64')).join()

/** The number of sealed values in a database by their beginning, such as `v1.1a2b3c4d.`. */
async function sealedWith({ db }: TestDatabase): Promise<Record<string, number>> {
  const counts: Record<string, number> = {}
  for (const column of await findSealedColumns(db)) {
    for await (const values of sealedPages(db, column)) {
      for (const { sealed } of values) {
        const prefix = sealed.slice(0, sealed.lastIndexOf('.') + 1)
        counts[prefix] = (counts[prefix] ?? 0) + 1
      }
    }
  }
  return counts
}

/** Opens the vault as a process of Chowder does at its start. */
const open = ({ db }: TestDatabase, ...keys: Buffer[]) =>
  openVault({ config: loadConfig({ CHOWDER_SECRET_KEY: text(keys) }), dataDir: '' }, db)

/** Runs `reseal` in this process. Returns its lines and its conclusion. */
async function resealWith({ db }: TestDatabase, vault: () => Promise<Vault>) {
  const lines: string[] = []
  const { text: conclusion, data } = await reseal({ db, vault, report: (line) => lines.push(line) })
  return { lines, conclusion, data: data as { resealed: number; unreadable: number } }
}

describe('the sealed columns', () => {
  let database: TestDatabase
  beforeAll(async () => {
    database = await cloneDatabase()
  })
  afterAll(() => database.drop())

  test('are all those of the schema, and the values of the installation', async () => {
    const tables = Object.values({
      ...schema,
      ...responseSchema,
      ...webhookSchema,
      ...scheduleSchema,
      ...hookSchema,
    }).filter((value) => is(value, PgTable))
    const named = tables.flatMap((table) =>
      Object.keys(getTableColumns(table))
        .filter((name) => name.startsWith('sealed'))
        .map((name) => `${getTableName(table)}.${name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)}`),
    )
    const found = (await findSealedColumns(database.db)).map(({ table, column }) => `${table}.${column}`)
    expect(named.length).toBeGreaterThan(8)
    expect(found).toEqual([...new Set([...named, 'installation.value'])].sort())
  })

  test('are the only places that the compiler lets anything be sealed for', () => {
    // @ts-expect-error: `reseal` would not find this column.
    const forgotten: Place = 'instances/a/secret'
    // @ts-expect-error
    const alsoForgotten: Place = 'tokens'
    expect([forgotten, alsoForgotten]).toHaveLength(2)
  })

  test('are read to their end while rows are added all the time', async () => {
    const { db, pool } = database
    const vault = createVault(randomBytes(32))
    const add = (id: string) =>
      pool.query(
        `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_object)
         VALUES ($1, gen_random_uuid(), gen_random_uuid(), 'main', 'completed', $2)`,
        [id, vault.seal('x', `responses/${id}/sealed_object`)],
      )
    const column = (await findSealedColumns(db)).find((one) => one.column === 'sealed_object')
    if (!column) throw new Error('no column')
    for (let n = 0; n < 3; n += 1) await add(newId())
    let count = 0
    for await (const values of sealedPages(db, column)) {
      count += values.length
      if (count > 10) break
      await add(newId())
    }
    expect(count).toBe(3)
  })

  test('a value that changes after it was read stays as it is', async () => {
    const { db, pool } = database
    const vault = createVault(randomBytes(32))
    const [place, now] = ['installation/signup-token/value', () => vault.seal('x', place as Place)] as const
    await pool.query('INSERT INTO installation VALUES ($1, $2)', ['signup-token', now()])
    const [column] = (await findSealedColumns(db)).filter(({ table }) => table === 'installation')
    if (!column) throw new Error('no column')
    const read = async () => (await sealedPages(db, column).next()).value ?? []
    const [before] = await read()
    if (!before) throw new Error('no value')
    const byOther = now()
    await pool.query('UPDATE installation SET value = $1', [byOther])
    expect(await replaceSealed(db, column, [{ ...before, by: 'v1.lost' }])).toBe(0)
    const [after] = await read()
    expect(after?.sealed).toBe(byOther)
    expect(await replaceSealed(db, column, [{ ...(after ?? before), by: 'v1.won' }])).toBe(1)
    expect((await read())[0]?.sealed).toBe('v1.won')
  })
})

describe('a change of the key while Chowder serves', () => {
  const [old, next] = [randomBytes(32), randomBytes(32)]
  const places = new Set<string>()
  let gateway: FakeGateway
  let chowder: TestChowder
  let key: string
  /** The vault of the processes, each of which is replaced when they get other keys. */
  let current = createVault(old)
  const vault: Vault = {
    get keyIds() {
      return current.keyIds
    },
    seal(sealed, place) {
      places.add(place)
      return current.seal(sealed, place)
    },
    unseal: (sealed, place) => current.unseal(sealed, place),
  }

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint), vault })
    await open(chowder.database, old)
    await chowder.startWorker()
    key = (await chowder.signUp()).key
  })
  afterAll(async () => {
    await chowder.close()
    await gateway.close()
  })

  const call = (method: 'GET' | 'POST' | 'PATCH', url: string, body?: unknown, headers = {}) =>
    chowder.call(method, url, { key, headers, ...(body !== undefined && { body }) })
  const create = (n: number) =>
    call('POST', '/v1/instances', { name: `a${n}`, instructions: `be ${n}` }, { 'idempotency-key': `create-${n}` })

  test('A22: seals everything again, refuses nothing, and loses no value that is written meanwhile', async () => {
    const { pool } = chowder.database
    const { id } = (await create(0)).body
    await until('the agent to run', async () => (await call('GET', `/v1/instances/${id}`)).body.status === 'running')
    await pool.query(
      "INSERT INTO channels (instance_id, channel, enabled, sealed_config) VALUES ($1, 'telegram', false, $2)",
      [id, vault.seal('{"botToken":"t"}', channelConfigPlace(id, 'telegram'))],
    )
    await pool.query("INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, 'weather', $2)", [
      id,
      vault.seal('{"env":{"A":"b"}}', skillSettingsPlace(id, 'weather')),
    ])
    const { body: webhook } = await call('POST', '/v1/webhooks', { url: 'http://127.0.0.1:9/' })
    await call('POST', `/v1/webhooks/${webhook.id}/rotate_secret`, {})
    await call('POST', `/v1/instances/${id}/schedules`, { cron: '0 7 * * *', input: 'x' })
    await call('POST', `/v1/instances/${id}/hooks`, { kind: 'github', input: 'x' })
    await call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'hello', background: true })
    await until('its events', () => [...places].some((place) => place.startsWith('response_events/')))
    const token = await findSignupToken(chowder.deps.db, vault)
    for (let n = 1; n < 8; n += 1) await create(n)
    expect(Object.keys(await sealedWith(chowder.database))).toEqual([sealedPrefix(keyIdOf(old))])
    const eventsBefore = (await pool.query('SELECT count(*)::int AS n FROM events')).rows[0].n

    current = createVault([next, old])
    const answers: { kind: string; status: number }[] = []
    const said: { id: string; text: string }[] = []
    let isOver = false
    const repeat = async (kind: string, act: (n: number) => Promise<{ status: number }>) => {
      for (let n = 0; !isOver; n += 1) answers.push({ kind, status: (await act(n)).status })
    }
    const load = [
      repeat('create', (n) => create(100 + n)),
      repeat('patch', (n) =>
        call('PATCH', `/v1/instances/${id}`, { metadata: { n: `${n}` }, instructions: `now ${n}` }),
      ),
      repeat('set a key', (n) => call('PATCH', '/v1/organization', { model_api_keys: { openai: `sk-${n}` } })),
      repeat('turn', async () => {
        const turn = await call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'hello' })
        if (turn.status === 200) said.push({ id: turn.body.id, text: turn.body.output[0].content[0].text })
        return turn
      }),
    ]
    await until('some load', () => answers.length > 20)
    const { lines, conclusion, data } = await resealWith(chowder.database, async () => vault).finally(() => {
      isOver = true
      return Promise.all(load)
    })
    expect(answers.filter(({ status }) => status >= 300)).toEqual([])
    expect(new Set(answers.map(({ kind }) => kind)).size).toBe(4)
    expect(data.resealed).toBeGreaterThan(20)
    expect(lines.join('\n')).toMatch(/instances\.sealed_token: \d+ values sealed again/)
    expect(conclusion).toContain(`Remove the old key ${keyIdOf(old)}`)
    expect(Object.keys(await sealedWith(chowder.database))).toEqual([sealedPrefix(keyIdOf(next))])

    current = createVault(next) // the old key is gone: everything is as it was before
    expect((await create(0)).body.id).toBe(id)
    expect((await create(3)).body.instructions).toBe('be 3')
    for (const { id: response, text: content } of said) {
      const stored = await call('GET', `/v1/instances/${id}/responses/${response}`)
      expect(stored.body.output[0].content[0].text).toBe(content)
    }
    expect(await findSignupToken(chowder.deps.db, vault)).toBe(token)
    expect((await call('POST', '/v1/organization/model_api_keys/test')).status).toBe(200)
    // Every place that anything was sealed for is one that `reseal` reads.
    const columns = (await findSealedColumns(chowder.deps.db)).map(({ table, column }) => `${table}/${column}`)
    const sealedFor = [...places].map((place) => `${place.split('/')[0]}/${place.split('/').at(-1)}`)
    expect(sealedFor.filter((place) => !columns.includes(place))).toEqual([])
    expect(new Set(sealedFor).size).toBe(columns.length - 1) // instances have no overrides here
    // What the values say is the same: nothing has happened to an instance.
    const untouched = "instance_id = (SELECT id FROM instances WHERE name = 'a7') AND type LIKE 'instance.c%'"
    const { rows } = await pool.query(`SELECT type FROM events WHERE ${untouched}`)
    expect([rows, eventsBefore > 0]).toEqual([[{ type: 'instance.create' }], true])
  })
})

describe('the processes of an installation', () => {
  const [old, next] = [randomBytes(32), randomBytes(32)]
  let database: TestDatabase
  beforeEach(async () => {
    database = await cloneDatabase()
    return () => database.drop()
  })
  const tokenIn = (vault: Vault) => findSignupToken(database.db, vault)

  test('a wrong key fails closed: no start, and a text that names the settings', async () => {
    await open(database, old)
    await expect(open(database, next)).rejects.toThrow(/not the one.*CHOWDER_SECRET_KEY.*file/)
    await expect(resealWith(database, () => open(database, next))).rejects.toThrow('not the one')
    await open(database, old)
  })

  test('a start needs the old key until everything is sealed with the new one, and then that', async () => {
    const before = await open(database, old)
    const token = await tokenIn(before)
    for (const keys of [
      [old, next],
      [next, old],
    ] as const)
      expect(await tokenIn(await open(database, ...keys))).toBe(token)
    await expect(open(database, next)).rejects.toThrow('not the one')
    const run = () => resealWith(database, () => open(database, next, old))
    expect((await run()).data.resealed).toBe(1)
    expect(await run()).toMatchObject({ lines: [], data: { resealed: 0, unreadable: 0 } })
    expect(await sealedWith(database)).toEqual({ [sealedPrefix(keyIdOf(next))]: 2 }) // with the check of the key
    for (const keys of [[old, next], [next]]) expect(await tokenIn(await open(database, ...keys))).toBe(token)
    await expect(open(database, old)).rejects.toThrow('not the one')
    // A process that goes on with the old key alone fails, and names both.
    await expect(tokenIn(before)).rejects.toThrow(
      `it was sealed with the secret key ${keyIdOf(next)}, and this process accepts ${keyIdOf(old)}`,
    )
    expect((await resealWith(database, () => open(database, next))).conclusion).toContain('There is no other key')
  })

  test('while a process seals with the old key, the new one is not required', async () => {
    await tokenIn(await open(database, old))
    const vault: Vault = { ...createVault([next, old]), seal: createVault(old).seal }
    await expect(resealWith(database, async () => vault)).rejects.toThrow('A process still seals with the other key')
    await open(database, old)
  })

  test('a value that no key unseals stays as it is, and is counted', async () => {
    const lost = createVault(randomBytes(32)).seal('x', 'installation/signup-token/value')
    await open(database, old)
    await database.pool.query("INSERT INTO installation VALUES ('signup-token', $1)", [lost])
    const { conclusion, data } = await resealWith(database, () => open(database, next, old))
    expect(data).toMatchObject({ resealed: 0, unreadable: 1 })
    expect(conclusion).toContain('No key unseals 1 other')
    expect(await sealedWith(database)).toMatchObject({ [lost.slice(0, lost.lastIndexOf('.') + 1)]: 1 })
    await open(database, next)
  })

  test('the key of the data folder is changed by hand', async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'chowder-key-'))
    const file = join(dataDir, 'secret-key')
    const start = () => openVault({ config: loadConfig({}), dataDir }, database.db)
    try {
      const token = await tokenIn(await start())
      const made = await readFile(file, 'utf8')
      await writeFile(file, `${text([next])}\n${made}`)
      expect(await tokenIn(await start())).toBe(token)
      expect((await resealWith(database, start)).data.resealed).toBe(1)
      await writeFile(file, `${text([next])}\n`)
      expect(await tokenIn(await start())).toBe(token)
      await writeFile(file, made)
      await expect(start()).rejects.toThrow('not the one')
    } finally {
      await rm(dataDir, { recursive: true })
    }
  })

  test('killed half-way, a start needs the old key still, and another run seals the rest', async () => {
    const count = 800
    const sealer = await open(database, old)
    const ids = Array.from({ length: count }, () => randomUUID())
    const content = 'x'.repeat(20_000)
    for (let from = 0; from < count; from += 200) {
      const some = ids.slice(from, from + 200)
      await database.pool.query(
        `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_object)
         SELECT id, gen_random_uuid(), gen_random_uuid(), 'main', 'completed', sealed
         FROM unnest($1::uuid[], $2::text[]) AS s (id, sealed)`,
        [some, some.map((id) => sealer.seal(content, `responses/${id}/sealed_object`))],
      )
    }
    const env = {
      ...compiledOnce,
      PATH: process.env.PATH ?? '',
      DATABASE_URL: urlOf(database.connection),
      CHOWDER_SECRET_KEY: text([next, old]),
    }
    const run = (...args: string[]) => spawn(process.execPath, [program, 'reseal', ...args], { env })
    const resealed = async (): Promise<number> => {
      const asked = 'SELECT count(*)::int AS n FROM responses WHERE substr(sealed_object, 1, 12) = $1'
      return (await database.pool.query(asked, [sealedPrefix(keyIdOf(next))])).rows[0].n
    }

    const killed = run()
    const ended = new Promise((resolve) => killed.once('close', resolve))
    await until('some progress', async () => (await resealed()) > 0, 30_000)
    killed.kill('SIGKILL')
    await ended
    const half = await resealed()
    expect(count).toBeGreaterThan(half)
    await expect(open(database, next)).rejects.toThrow('not the one')
    await open(database, next, old)

    const again = run('--json')
    let output = ''
    let progress = ''
    again.stdout.on('data', (data) => (output += data))
    again.stderr.on('data', (data) => (progress += data))
    expect(await new Promise((resolve) => again.once('close', resolve))).toBe(0)
    expect(JSON.parse(output)).toMatchObject({ key_id: keyIdOf(next), old_key_id: keyIdOf(old), unreadable: 0 })
    expect(JSON.parse(output).resealed).toBeLessThanOrEqual(count - half)
    expect(progress).toContain(`responses.sealed_object: ${JSON.parse(output).resealed} values sealed again`)
    expect(await sealedWith(database)).toEqual({ [sealedPrefix(keyIdOf(next))]: count + 1 }) // and the check of the key
    const vault = await open(database, next)
    const { rows } = await database.pool.query('SELECT sealed_object FROM responses WHERE id = $1', [ids[0]])
    expect(vault.unseal(rows[0].sealed_object, `responses/${ids[0]}/sealed_object`)).toBe(content)
    await expect(open(database, old)).rejects.toThrow('not the one')
  }, 120_000)
})
