import { afterAll, expect, onTestFinished, test } from 'vitest'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({ config: { browser: { enabled: false } } })
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})
const { key } = await chowder.signUp()

const call = (method: 'GET' | 'POST' | 'PATCH', path: string, body?: unknown) =>
  chowder.call(method, path, { key, ...(body !== undefined && { body }) })
async function create(fields: object = {}) {
  const { status, body } = await call('POST', '/v1/instances?wait=30', { name: 'x', ...fields })
  expect([status, body.status]).toEqual([201, 'running'])
  return body
}
const configOf = (id: string) => JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
const specOf = (id: string) => driver.sandboxes.get(id)?.spec
const isRefused = { status: 400, body: { error: { code: 'invalid_openclaw_config', param: 'openclaw_config' } } }

test('an agent has one room by default, and says so', async () => {
  const { id, isolation } = await create()
  expect(isolation).toBe('one_room')
  expect(specOf(id)?.room).toBeUndefined()
  expect(configOf(id).agents.defaults.sandbox).toBeUndefined()
})

test('an agent with two rooms runs its tools in the second, whatever its overrides say of other things', async () => {
  const { id, isolation } = await create({
    isolation: 'two_rooms',
    openclaw_config: { 'tools.web.fetch.enabled': true },
  })
  expect(isolation).toBe('two_rooms')
  expect(specOf(id)?.room).toMatchObject({ folder: 'state/workspace', hidden: '.openclaw' })
  const { agents, tools } = configOf(id)
  expect(agents.defaults.sandbox).toMatchObject({
    mode: 'all',
    backend: 'ssh',
    workspaceRoot: `/sandbox/${id}/state/workspace`,
    ssh: { command: '/programs/ssh', workspaceRoot: '/room' },
    prune: { idleHours: 0, maxAgeDays: 0 },
  })
  expect(tools).toMatchObject({ elevated: { enabled: false }, web: { fetch: { enabled: true } }, codeMode: false })
  expect(tools.sandbox.tools.allow).toEqual(expect.not.arrayContaining(['gateway', 'nodes', 'cron']))
  expect(driver.file(id, 'state/workspace/.openclaw/.keep')).toBe('')
})

test('a plugin that an agent has planted with one room is gone before it gets two', async () => {
  const { id } = await create()
  const planted = 'state/workspace/.openclaw/extensions/telegram/index.js'
  await driver.files(id).write(planted, Buffer.from('hostile'), {}, AbortSignal.timeout(5000))
  // As a driver makes it anew.
  const sandbox = driver.sandboxes.get(id)
  if (sandbox) sandbox.spec = { ...sandbox.spec, room: { folder: '', socketFolder: '', place: '', hidden: '' } }
  await call('PATCH', `/v1/instances/${id}`, { isolation: 'two_rooms' })
  await until('the restart', async () => (await call('GET', `/v1/instances/${id}`)).body.status === 'running')
  expect(driver.file(id, planted)).toBeNull()
})

test('a change of the isolation starts the agent again, in the rooms that it asks for', async () => {
  const { id } = await create()
  const { status, body } = await call('PATCH', `/v1/instances/${id}`, { isolation: 'two_rooms', name: 'y' })
  expect([status, body.isolation, body.name, body.status]).toEqual([200, 'two_rooms', 'y', 'provisioning'])
  driver.sandboxes.delete(id) // as a driver makes it anew when it is asked for another
  await until(
    'two rooms',
    async () => specOf(id)?.room && (await call('GET', `/v1/instances/${id}`)).body.status === 'running',
  )
  const again = await call('PATCH', `/v1/instances/${id}`, { isolation: 'two_rooms' })
  expect([again.status, again.body.status]).toEqual([200, 'running'])
})

test.each([
  { 'agents.defaults.sandbox.mode': 'off' },
  { 'agents.entries.main.sandbox.mode': 'off' },
  { 'tools.exec.host': 'gateway' },
  { 'agents.entries.main.tools.elevated.enabled': true },
  { 'mcp.servers.x.command': '/room/run' },
  { 'hooks.internal.enabled': true },
])('two rooms do not go with %j, however it comes in', async (overrides) => {
  const { id } = await create({ isolation: 'two_rooms' })
  const fields = { name: 'x', openclaw_config: overrides }
  expect(await call('POST', '/v1/instances', { ...fields, isolation: 'two_rooms' })).toMatchObject(isRefused)
  expect(await call('PATCH', `/v1/instances/${id}`, { openclaw_config: overrides })).toMatchObject(isRefused)
  const other = await create({ openclaw_config: overrides })
  expect(await call('PATCH', `/v1/instances/${other.id}`, { isolation: 'two_rooms' })).toMatchObject(isRefused)

  await call('PATCH', '/v1/organization', { isolation: 'two_rooms' })
  onTestFinished(async () => void (await call('PATCH', '/v1/organization', { isolation: 'one_room' })))
  expect(await call('POST', '/v1/instances', fields)).toMatchObject(isRefused)
})

test('the organization says what new agents get', async () => {
  expect((await call('GET', '/v1/organization')).body.isolation).toBe('one_room')
  expect((await call('PATCH', '/v1/organization', { isolation: 'two_rooms' })).body.isolation).toBe('two_rooms')
  expect((await create()).isolation).toBe('two_rooms')
  expect((await create({ isolation: 'one_room' })).isolation).toBe('one_room')
  await call('PATCH', '/v1/organization', { isolation: 'one_room' })
})

test('the files API cannot plant a plugin for the gateway', async () => {
  const { id } = await create({ isolation: 'two_rooms' })
  const files = `/v1/instances/${id}/files`
  for (const [method, path, body] of [
    ['POST', 'mkdir', { path: '.openclaw/extensions' }],
    ['PUT', 'content', { path: './.openclaw/extensions/x/index.js', content: '' }],
    ['POST', 'move', { source: 'x', destination: '.openclaw' }],
  ] as const) {
    const { status, body: answer } = await chowder.call(method, `${files}/${path}`, { key, body })
    expect([status, answer.error.code]).toEqual([400, 'invalid_path'])
  }
})

test('a driver without rooms refuses them, and a worker of one says why', async () => {
  const { id } = await create({ isolation: 'two_rooms' })
  const poor = new FakeDriver(() => gateway.endpoint)
  poor.hasTwoRooms = false
  const other = await openTestChowder({ sandboxes: poor })
  onTestFinished(() => other.close())
  const { key: theirs } = await other.signUp()
  const unavailable = { status: 400, body: { error: { code: 'invalid_value', param: 'isolation' } } }
  const body = { isolation: 'two_rooms' }
  expect(await other.call('POST', '/v1/instances', { key: theirs, body: { ...body, name: 'x' } })).toMatchObject(
    unavailable,
  )
  expect(await other.call('PATCH', '/v1/organization', { key: theirs, body })).toMatchObject(unavailable)
  const made = await other.call('POST', '/v1/instances', { key: theirs, body: { name: 'x' } })
  expect(await other.call('PATCH', `/v1/instances/${made.body.id}`, { key: theirs, body })).toMatchObject(unavailable)

  driver.hasTwoRooms = false
  onTestFinished(() => {
    driver.hasTwoRooms = true
  })
  driver.sandboxes.delete(id)
  const failed = await until('the instance to fail', async () => {
    const instance = (await call('GET', `/v1/instances/${id}`)).body
    return instance.status === 'error' ? instance : null
  })
  expect(failed.error_message).toContain('isolation one_room')
})
