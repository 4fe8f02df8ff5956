import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Redis } from 'ioredis'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { findSecrets, type Places } from '../support/canary/search.ts'
import { keepText, newSecret, noteAnswer, noteRequest, noteSecret, type SecretKind } from '../support/canary/secrets.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'

const redisUrl = inject('redisUrl')
const id = '3f0c3b52-6a8e-4a53-9f52-0d6f8f4f1a11'
let folder: string
let database: TestDatabase
const undo: (() => unknown)[] = []

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'chowder-planted-'))
  database = await cloneDatabase()
})
afterAll(async () => {
  for (const one of undo) await one()
  await rm(folder, { recursive: true })
  await database.drop()
})

/** The places in which a search finds this secret, by the encoding. */
async function placesOf(value: string, places: Places = {}): Promise<string[]> {
  const found = await findSecrets({ folders: [folder], ...places })
  return found.filter(({ secret }) => secret.value === value).map(({ encoding, place }) => `${encoding} ${place}`)
}

async function plant(path: string, text: string): Promise<string> {
  const file = join(folder, path)
  await mkdir(dirname(file), { recursive: true })
  await writeFile(file, text)
  return file
}

describe('a secret is found', () => {
  test.each<[name: string, encode: (secret: string) => string, encoding: string]>([
    ['plain', (secret) => secret, 'plain'],
    ['in base64', (secret) => Buffer.from(`:${secret}`).toString('base64'), 'base64'],
    ['in base64 after two bytes', (secret) => Buffer.from(`ab${secret} and more`).toString('base64'), 'base64'],
    ['in base64 after three bytes, for URLs', (secret) => Buffer.from(`abc${secret}`).toString('base64url'), 'base64'],
    ['in a URL', (secret) => `https://x.test/?key=${encodeURIComponent(secret)}`, 'URL'],
    ['in a form', (secret) => new URLSearchParams({ secret }).toString(), 'URL'],
    ['in JSON', (secret) => JSON.stringify({ secret }), 'JSON'],
    ['in JSON within JSON', (secret) => JSON.stringify({ body: JSON.stringify({ secret }) }), 'JSON'],
  ])('%s', async (_, encode, encoding) => {
    const secret = newSecret('provider key')
    const file = await plant(`logs/${Math.random()}.log`, `one\nbefore${encode(secret)}after\n`)
    expect(await placesOf(secret)).toEqual([`${encoding} ${file}`])
    await rm(file)
    expect(await placesOf(secret)).toEqual([])
  })

  test.each(['text', 'jsonb', 'bytea', 'text[]'])('in a column of the type %s', async (type) => {
    const secret = newSecret('API key')
    await database.pool.query(`CREATE TABLE planted (leak ${type})`)
    const value = { jsonb: JSON.stringify({ secret }), bytea: Buffer.from(secret), 'text[]': [secret] }[type] ?? secret
    await database.pool.query('INSERT INTO planted SELECT NULL FROM generate_series(1, 2500)')
    await database.pool.query('INSERT INTO planted VALUES ($1)', [value])
    const found = await placesOf(secret, { databases: [database.connection] })
    await database.pool.query('DROP TABLE planted')
    expect(found).toEqual([expect.stringMatching(/^JSON database\/planted$/)])
  })

  test('in what a connection to the database runs', async () => {
    const secret = newSecret('API key', '', '')
    await database.pool.query(`SELECT '${secret}'`)
    expect(await placesOf(secret, { databases: [database.connection] })).toEqual(['plain database/pg_stat_activity'])
    await database.pool.query('SELECT 1')
  })

  test.skipIf(redisUrl === null)('in a Redis, in values of each type and in keys', async () => {
    const redis = new Redis(redisUrl ?? '')
    const key = (name: string) => `planted-${name}`
    const plants: Record<string, (secret: string) => Promise<unknown>> = {
      string: (secret) => redis.set(key('string'), secret.padEnd(2000, 'x')),
      hash: (secret) => redis.hset(key('hash'), 'field', secret),
      list: (secret) => redis.lpush(key('list'), secret),
      set: (secret) => redis.sadd(key('set'), secret),
      zset: (secret) => redis.zadd(key('zset'), 1, secret),
      stream: (secret) => redis.xadd(key('stream'), '*', 'field', secret),
    }
    try {
      for (const [name, put] of Object.entries(plants)) {
        const secret = newSecret('provider key')
        await put(secret)
        expect([name, await placesOf(secret, { redisUrl })]).toEqual([name, ['JSON redis']])
        await redis.del(key(name))
      }
      const secret = newSecret('provider key')
      await redis.set(key(secret), '1', 'EX', 60)
      expect(await placesOf(secret, { redisUrl })).toEqual(['JSON redis'])
      await redis.del(key(secret))
    } finally {
      redis.disconnect()
    }
  })

  test('in the arguments, the environment and the title of a process', async () => {
    const [argument, variable] = [newSecret('API key'), newSecret('API key')]
    const title = newSecret('API key', '', '').slice(0, 15)
    noteSecret('API key', title)
    const script = `process.title = ${JSON.stringify(title)}; console.log(1); setInterval(() => {}, 1000)`
    const child = spawn(process.execPath, ['-e', script], {
      env: { LEAK: variable },
      stdio: ['ignore', 'pipe', 'ignore'],
    })
    const other = spawn('sleep', ['60'], { argv0: argument, stdio: 'ignore' })
    const end = (one: ChildProcess) => {
      one.kill()
      return once(one, 'exit')
    }
    undo.push(
      () => end(child),
      () => end(other),
    )
    await new Promise((resolve) => child.stdout.once('data', resolve))
    expect(await placesOf(argument)).toEqual([`plain processes/other/${other.pid}/argv`])
    expect(await placesOf(variable)).toEqual([`plain processes/other/${child.pid}/environment`])
    expect(await placesOf(title)).toContain(`plain processes/other/${child.pid}/title`)
  })

  test('in an answer, in the log, and in any text of a search', async () => {
    const secret = newSecret('provider key')
    noteAnswer(JSON.stringify({ error: { message: `no: ${secret}` } }))
    keepText('log', `{"msg":"asked with ${encodeURIComponent(secret)}"}\n`)
    expect((await placesOf(secret, { texts: { metrics: `name{label="${secret}"} 1` } })).sort()).toEqual([
      'JSON answers',
      'URL log',
      'plain metrics',
    ])
  })

  test.each(['sessions/main.jsonl', 'openclaw.json.bak.d/x', 'agents/main/models.json', '../gateway.log'])(
    'in a file of a sandbox: %s',
    async (name) => {
      const secret = newSecret('channel secret')
      const file = await plant(join(`sandboxes/${id}/home/state`, name), JSON.stringify({ secret }))
      expect(await placesOf(secret)).toEqual([`JSON ${file}`])
    },
  )
})

describe('a secret is known', () => {
  const written = `written-${'0123456789'.repeat(3)}`
  test.each<[path: string, body: object]>([
    ['/v1/organization', { model_api_keys: { anthropic: `${written}-1` } }],
    ['/v1/instances/x/channels/telegram/connect', { config: { bot_token: `${written}-2` } }],
    ['/v1/instances/x/skills/y', { env: { NAME: `${written}-3` } }],
    ['/v1/instances', { openclaw_config: { 'hooks.token': `${written}-4` } }],
  ])('that a call of %s carries', async (path, body) => {
    noteRequest(path, { authorization: `Bearer chd_org_${written}` }, body)
    const file = await plant('sent', `${JSON.stringify(body)} chd_org_${written}`)
    const found = await findSecrets({ folders: [folder] })
    expect(found.filter(({ place }) => place === file)).toHaveLength(2)
  })

  test('that an answer shows, where a new key may be shown and elsewhere not', async () => {
    const [shown, token] = [`chd_sk_${written}`, `chd_ct_${written}`]
    noteAnswer(JSON.stringify({ id: 1, raw_key: shown }))
    noteAnswer(JSON.stringify({ client_token: token }))
    expect([await placesOf(shown), await placesOf(token)]).toEqual([[], []])
    noteAnswer(JSON.stringify({ detail: shown }))
    expect(await placesOf(shown)).toEqual(['plain answers'])
  })

  test('that a gateway has, which its own sandbox alone may have, in its file of secrets', async () => {
    const [token, relayToken] = [randomBytes(32).toString('hex'), randomBytes(32).toString('hex')]
    const secrets: GatewaySecrets = { gatewayToken: token, relayToken }
    await plant(`sandboxes/${id}/home/state/secrets.json`, JSON.stringify(secrets))
    const [log, other] = [
      await plant(`sandboxes/${id}/gateway.log`, `token ${token}`),
      await plant('sandboxes/0f0c3b52-6a8e-4a53-9f52-0d6f8f4f1a12/home/state/secrets.json', `"${relayToken}"`),
    ]
    expect(await placesOf(token)).toEqual([`plain ${log}`])
    expect(await placesOf(relayToken)).toEqual([`plain ${other}`])
  })
})

test.each<[kind: SecretKind, place: string, other: SecretKind]>([
  ['relay token', `sandboxes/${id}/home/state/secrets.json`, 'channel secret'],
  ['channel secret', `sandboxes/${id}/home/state/openclaw.json`, 'relay token'],
  ['override secret', `sandboxes/${id}/home/state/openclaw.json.bak`, 'API key'],
  ['secret key', 'secret-key', 'provider key'],
  ['password', 'database-password', 'API key'],
])('a %s may be in %s, and a %s not', async (kind, place, other) => {
  const [mine, foreign] = [newSecret(kind), newSecret(other)]
  const file = await plant(place, `${mine} ${foreign}`)
  expect(await placesOf(mine)).toEqual([])
  expect(await placesOf(foreign)).toEqual([`plain ${file}`])
})
