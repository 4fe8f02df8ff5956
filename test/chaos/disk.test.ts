import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, mkdir, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import { type Api, api, say, sessionPath, signUp } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { type ChowderProcess, removeDataDir, startChowder } from '../support/chowder-process.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { present } from '../support/present.ts'
import { openStubSandboxes, type StubProvider, type StubSandboxes, startStubProvider } from '../support/stub-agents.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

vi.setConfig({ testTimeout: 60_000 })

const run = promisify(execFile)
const isRoot = process.getuid?.() === 0
const page = 4096

/** Makes a folder a small disk of its own. */
async function mount(folder: string, size: string): Promise<void> {
  await mkdir(folder, { recursive: true })
  await run('mount', ['-t', 'tmpfs', '-o', `size=${size},mode=0711`, 'tmpfs', folder])
}

/** Takes all the room that a disk has left; resolves to what gives it back. */
async function fill(folder: string): Promise<() => Promise<void>> {
  const path = join(folder, 'filler')
  await using file = await open(path, 'w')
  for (const bytes of [1024 * 1024, page]) {
    const block = Buffer.alloc(bytes)
    for (let isFull = false; !isFull; ) {
      isFull = await file.write(block).then(
        ({ bytesWritten }) => bytesWritten < bytes,
        (error: NodeJS.ErrnoException) => {
          if (error.code !== 'ENOSPC') throw error
          return true
        },
      )
    }
  }
  return () => rm(path)
}

const title = isRoot ? 'a full disk' : 'a full disk (needs root, to mount a small one)'

describe.skipIf(!isRoot)(`${title} below agents`, () => {
  let stubs: StubSandboxes
  let provider: StubProvider
  let chowder: TestChowder
  let client: Api
  let key: string
  const mounted: string[] = []
  const gateways: FakeGateway[] = []
  const gatewayOf = new Map<string, FakeGateway>()
  /** Whether a worker may begin: an instance's folder is made a disk of its own before. */
  let isHeld = false

  beforeAll(async () => {
    provider = await startStubProvider()
    stubs = await openStubSandboxes()
    const { driver } = stubs
    // Real processes in real folders; what the stub does not know, the gateway's RPC, is answered by the fake.
    const sandboxes: SandboxDriver = {
      ...driver,
      async prepare() {
        await until('the disk', () => !isHeld)
      },
      async observe(id, signal) {
        const seen = await driver.observe(id, signal)
        return seen.endpoint ? { ...seen, endpoint: present(gatewayOf.get(id)).endpoint } : seen
      },
    }
    chowder = await openTestChowder({ sandboxes, relayUrl: provider.url })
    key = (await chowder.signUp()).key
    client = api(await chowder.app.listen({ host: '127.0.0.1', port: 0 }), key)
    await chowder.startWorker()
  })
  afterAll(async () => {
    await chowder?.close()
    for (const folder of mounted.reverse()) await run('umount', ['-l', folder])
    await stubs?.close()
    await provider?.close()
    await Promise.all(gateways.map((gateway) => gateway.close()))
  })

  const shown = async (id: string) => (await client.get(`/v1/instances/${id}`)).body
  const isSettledAs = (id: string, status: string) =>
    until(
      `${id} to be ${status}`,
      async () => {
        const body = await shown(id)
        return body.status === status && body.step === null ? body : null
      },
      20_000,
    )
  const isGivenUp = (id: string) =>
    until(
      `${id} to be given up`,
      async () => {
        // As if the pauses between the attempts had passed.
        await chowder.database.pool.query('UPDATE instances SET next_attempt_at = now() WHERE id = $1', [id])
        const { status, error_message } = await shown(id)
        return status === 'error' ? error_message : null
      },
      20_000,
    )
  const remove = async (id: string) => {
    expect((await client.delete(`/v1/instances/${id}`)).status).toBe(204)
    const state = async () => (await stubs.driver.observe(id, AbortSignal.timeout(5000))).state
    await until(`the end of ${id}`, async () => (await state()) === 'absent', 20_000)
  }
  const put = async (id: string, path: string) =>
    (await chowder.call('PUT', `/v1/instances/${id}/files/content`, { key, body: { path, content: 'x' } })).status
  const prompt = (text: string) => ({ openclaw_config: { agent: { system_prompt: text } } })

  async function create(size?: string): Promise<string> {
    const gateway = await startFakeGateway({})
    gateways.push(gateway)
    isHeld = size !== undefined
    const { body } = await client.post('/v1/instances', { name: 'agent' })
    gatewayOf.set(body.id, gateway)
    if (size !== undefined) {
      await mount(stubs.folderOf(body.id), size)
      mounted.push(stubs.folderOf(body.id))
    }
    isHeld = false
    return body.id
  }

  /** Nothing that another instance does is any different. */
  async function expectUnaffected(id: string): Promise<void> {
    expect(await put(id, 'notes.txt')).toBe(204)
    expect((await client.patch(`/v1/instances/${id}`, prompt('Be kind.'))).status).toBe(200)
    expect(await say(client, sessionPath(id), 'hello')).toBe('Hello there')
    expect(await shown(id)).toMatchObject({ status: 'running', error_message: null })
  }

  test('F20: one agent’s full disk answers 507 for its files and its configuration, which do not change, and gives the reason when it cannot start', async () => {
    const [full, other] = [await create('2m'), await create()]
    for (const id of [full, other]) await isSettledAs(id, 'running')
    expect((await client.patch(`/v1/instances/${full}`, prompt('Be brief.'))).status).toBe(200)
    const before = await shown(full)
    const freeUp = await fill(stubs.folderOf(full))

    expect(await put(full, 'notes.txt')).toBe(507)
    const refused = await client.patch(`/v1/instances/${full}`, prompt('Be verbose.'))
    expect([refused.status, refused.body.detail]).toEqual([507, expect.stringMatching(/disk .*(full|no room)/)])
    const after = await isSettledAs(full, 'running')
    expect(after.openclaw_config).toEqual(before.openclaw_config)
    expect((await client.patch(`/v1/instances/${full}`, { name: 'renamed' })).status).toBe(200)
    expect(await say(client, sessionPath(full), 'hello')).toBe('Hello there')
    await expectUnaffected(other)

    expect((await client.post(`/v1/instances/${full}/stop`)).status).toBe(200)
    const starting = client.post(`/v1/instances/${full}/start`)
    await isGivenUp(full)
    expect((await starting).body.error_message).toMatch(/disk .*(full|no room)/)
    await expectUnaffected(other)
    await freeUp()
    expect((await client.post(`/v1/instances/${full}/start`)).body).toMatchObject({ status: 'running', error_message: null }) // biome-ignore format: short
    expect(await put(full, 'notes.txt')).toBe(204)

    expect((await client.post(`/v1/instances/${full}/stop`)).status).toBe(200)
    await run('umount', ['-l', stubs.folderOf(full)])
    mounted.pop()
    await Promise.all([full, other].map(remove))
  })

  test('F20: on a full disk of all agents, running ones continue, a new one gives the reason why it cannot start, and a delete frees space', async () => {
    await mount(stubs.folder, '4m')
    mounted.push(stubs.folder)
    const [running, large] = [await create(), await create()]
    for (const id of [running, large]) await isSettledAs(id, 'running')
    await fill(join(stubs.folderOf(large), 'home'))

    const late = await create()
    expect(await isGivenUp(late)).toMatch(/disk .*(full|no room)/)
    expect(await shown(running)).toMatchObject({ status: 'running', error_message: null })
    expect(await say(client, sessionPath(running), 'hello')).toBe('Hello there')
    await remove(large)
    expect((await client.post(`/v1/instances/${late}/start`)).body).toMatchObject({ status: 'running' })
    await expectUnaffected(late)
    await expectUnaffected(running)
    await Promise.all([late, running].map(remove)) // with their disk nobody would find them any more
  })
})

describe.skipIf(!isRoot)(`${title} below the database`, () => {
  let dataDir: string
  let disk: string
  let started: ChowderProcess
  let client: Api
  const accepted: string[] = []

  beforeAll(async () => {
    dataDir = await mkdtemp(join(tmpdir(), 'chowder-disk-'))
    await chmod(dataDir, 0o711) // the database runs as another user
    disk = join(dataDir, 'postgres')
    await mount(disk, '256m')
    await chmod(disk, 0o755)
    const env = { ANTHROPIC_BASE_URL: 'http://127.0.0.1:9' }
    started = await startChowder({ dataDir, role: 'api', env })
    client = api(started.url, await signUp(started.url, newSecret('provider key', 'sk-')))
  })
  afterAll(async () => {
    await started?.kill('SIGTERM')
    await run('umount', ['-l', disk])
    await removeDataDir(dataDir)
  })

  const create = async () => {
    const openclaw_config = { agent: { system_prompt: randomBytes(20_000).toString('base64') } }
    const answer = await client.post('/v1/instances', { name: `agent ${accepted.length}`, openclaw_config })
    if (answer.status === 201) accepted.push(answer.body.id)
    else expect([answer.status, answer.headers.get('retry-after')], JSON.stringify(answer.body)).toEqual([503, '1'])
    return answer.status
  }

  /** Expects exactly the accepted instances. */
  async function expectAccepted(): Promise<void> {
    const { status, body } = await client.get('/v1/instances')
    expect(status).toBe(200)
    const ids = body.map(({ id }: { id: string }) => id)
    expect(ids.sort()).toEqual([...accepted].sort())
  }

  test('F20: on a full disk of the database, writes answer 503 with Retry-After, reads are served, and writes succeed once there is space', async () => {
    for (let index = 0; index < 5; index += 1) expect(await create()).toBe(201)
    const freeUp = await fill(disk)
    await until('a refusal', async () => (await create()) === 503, 20_000)
    await expectAccepted()
    expect((await client.get(`/v1/instances/${accepted[0]}`)).status).toBe(200)
    expect(started.output()).toContain('No space left on device')
    await freeUp()
    expect(await create()).toBe(201)
    await expectAccepted()
  })

  test('F20: a database that stops because its disk is full restarts itself once there is space, with all accepted requests', async () => {
    const freeUp = await fill(disk)
    const direct = await reachEmbeddedPostgres(dataDir)
    const connection = new pg.Client(direct)
    connection.on('error', () => {})
    await connection.connect()
    // The next write needs a new file.
    await connection.query('SELECT pg_switch_wal()').catch(() => {})
    await until('the end of the database', async () => (await create()) === 503 && (await client.get('/v1/instances')).status === 503, 20_000) // biome-ignore format: short
    const cannotStart = () => started.output().includes('the embedded database cannot be reached')
    await until('its starts to fail', cannotStart, 20_000)
    expect((await client.get('/healthz')).status).toBe(200)
    expect((await client.get('/readyz')).status).toBe(503)
    await freeUp()
    await until('a request to be served', async () => (await client.get('/v1/instances')).status === 200, 20_000)
    await expectAccepted()
    expect(await create()).toBe(201)
  })
})
