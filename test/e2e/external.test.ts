import { randomBytes, randomUUID } from 'node:crypto'
import { access } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { agentEnv } from '../support/agent-sandboxes.ts'
import { api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { requireNoSecrets } from '../support/canary/search.ts'
import { newSecret } from '../support/canary/secrets.ts'
import {
  type ChowderProcess,
  findGateway,
  makeDataDir,
  removeDataDir,
  runChowder,
  startChowder,
} from '../support/chowder-process.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { inDatabase } from '../support/servers.ts'

/** A server's connection as operators write it. */
function databaseUrl({ connectionString, host, port, user, password }: pg.PoolConfig, database: string): string {
  if (connectionString !== undefined) return Object.assign(new URL(connectionString), { pathname: `/${database}` }).href
  const login = `${encodeURIComponent(user ?? '')}:${encodeURIComponent(String(password))}`
  return `postgresql://${login}@localhost:${port}/${database}?host=${encodeURIComponent(host ?? '')}`
}

describe('Chowder on a database and a Redis of yours', () => {
  const database = `external_${randomUUID().replaceAll('-', '')}`
  let provider: FakeModelProvider
  let dataDir: string
  let env: Record<string, string>
  const providerKey = newSecret('provider key', 'sk-ant-')
  const started: ChowderProcess[] = []

  async function onServer(statement: string): Promise<void> {
    const client = new pg.Client(inject('postgres'))
    await client.connect()
    await client.query(statement).finally(() => client.end())
  }

  beforeAll(async () => {
    provider = await startFakeModelProvider()
    dataDir = await makeDataDir()
    await onServer(`CREATE DATABASE ${database}`)
    const redisUrl = inject('redisUrl')
    env = {
      DATABASE_URL: databaseUrl(inject('postgres'), database),
      ...(redisUrl !== null && { REDIS_URL: redisUrl }),
      CHOWDER_SECRET_KEY: randomBytes(32).toString('base64'),
      ...(await agentEnv(provider.url)),
    }
  })

  afterAll(async () => {
    await Promise.all(started.map((chowder) => chowder.kill('SIGTERM')))
    await requireNoSecrets({ databases: [inDatabase(inject('postgres'), database)] })
    await removeDataDir(dataDir)
    await onServer(`DROP DATABASE IF EXISTS ${database} WITH (FORCE)`)
    await provider?.close()
  })

  it('an API and a worker refuse to start on a schema that is behind, and name the command', async () => {
    for (const role of ['api', 'worker']) {
      const { code, output } = await runChowder({ dataDir, role, env })
      expect(code).toBe(1)
      expect(output).toContain('npm run migrate')
    }
  })

  it('needs the secret key, which it will not make up for a database of yours', async () => {
    const { CHOWDER_SECRET_KEY: _, ...rest } = env
    const { code, output } = await runChowder({ dataDir, role: 'api', env: rest })
    expect(code).toBe(1)
    expect(output).toContain('CHOWDER_SECRET_KEY is required')
  })

  // Compose does so in every run.
  it('migrate may be run twice; then an API and a worker, each a process of its own, serve an agent', {
    tags: ['long'],
  }, async () => {
    for (let run = 0; run < 2; run += 1) {
      expect(await runChowder({ dataDir, role: 'migrate', env })).toMatchObject({ code: 0 })
    }
    const front = await startChowder({ dataDir, role: 'api', env })
    const worker = await startChowder({ dataDir, role: 'worker', env })
    started.push(front, worker)
    const key = await signUp(front.url, providerKey)
    const client = api(front.url, key)
    const { body } = await client.post('/v1/instances', { name: 'split' })
    await waitForStatus(client, body.id, 'running')
    expect(await say(client, sessionPath(body.id), 'hello')).toContain('turns=1 last="hello"')
    expect((await client.get('/readyz')).body).toMatchObject({
      status: 'ready',
      checks: { database: true, queue: true },
    })

    const gateway = await findGateway(body.id)
    for (const secret of [env.CHOWDER_SECRET_KEY, key, providerKey, gateway?.token]) {
      expect(front.output() + worker.output()).not.toContain(secret)
    }
    await expect(access(join(dataDir, 'postgres'))).rejects.toThrow('ENOENT') // the embedded one was never made

    expect((await client.delete(`/v1/instances/${body.id}`)).status).toBe(204)
    const { CHOWDER_SECRET_KEY: _, ...rest } = env
    const other = { ...rest, CHOWDER_SECRET_KEY: randomBytes(32).toString('base64') }
    const refused = await runChowder({ dataDir, role: 'api', env: other })
    expect(refused.code).toBe(1)
    expect(refused.output).toContain('The secret key is not the one')
  })
})
