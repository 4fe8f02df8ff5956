import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { dockerSettings } from '../../src/open-sandboxes.ts'
import { defaultRelease } from '../../src/openclaw/releases.ts'
import { loadConfig } from '../../src/platform/config.ts'
import { openDriver } from '../../src/sandbox/index.ts'
import { type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { type ChowderProcess, makeDataDir, removeDataDir, startChowder } from '../support/chowder-process.ts'
import { startDockerd, type TestDockerd, whyNoDockerd } from '../support/dockerd.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { until } from '../support/until.ts'

const minute = 60_000
const providerKey = 'sk-ant-canary-provider-key'
const fakeProvider = fileURLToPath(new URL('../support/fake-model-provider.mjs', import.meta.url))

const missing = await whyNoDockerd()
if (missing) console.warn(`agents in containers are not tested: ${missing}`)

describe.skipIf(missing)('real agents in containers', () => {
  let dockerd: TestDockerd
  let outside: Outside
  let dataDir: string
  let env: Record<string, string>
  let chowder: ChowderProcess
  let client: Api
  let key: string
  let id: string

  beforeAll(async () => {
    dockerd = await startDockerd()
    // Not on this host: agents are kept from it.
    outside = await openOutside((port) => [fakeProvider, '--host', '0.0.0.0', '--port', String(port)])
    const { NODE_EXTRA_CA_CERTS } = process.env
    env = {
      SANDBOX_DRIVER: 'docker',
      DOCKER_HOST: dockerd.host,
      DOCKER_NETWORK: 'chowder-test',
      DOCKER_BUILD_NETWORK: 'host',
      ANTHROPIC_BASE_URL: `http://${outside.address}:${outside.port}`,
      ...(NODE_EXTRA_CA_CERTS && { DOCKER_EXTRA_CA_FILE: NODE_EXTRA_CA_CERTS }),
    }
    const options = { ...(await dockerSettings(loadConfig(env))), installation: '' }
    const building = AbortSignal.timeout(15 * minute)
    await openDriver({ name: 'docker', options }).prepare(defaultRelease, (line) => console.log(line), building)
    dataDir = await makeDataDir()
    chowder = await startChowder({ dataDir, env })
    key = await signUp(chowder.url, providerKey)
    client = api(chowder.url, key)
    const created = await client.post('/v1/instances', { name: 'my-assistant', model_provider: 'anthropic' })
    id = created.body.id
    await waitForStatus(client, id, 'running')
  }, 20 * minute)

  afterAll(async () => {
    await chowder?.kill('SIGINT')
    if (dataDir) await removeDataDir(dataDir)
    await outside?.close()
    await dockerd?.close()
  }, 2 * minute)

  const inspect = async () => JSON.parse(await dockerd.docker('inspect', `chowder-${id}`))[0]
  const content = (path: string) => client.get(`/v1/instances/${id}/files/content?path=${path}`)

  it('talk, and remember', async () => {
    expect((await client.get(`/v1/instances/${id}`)).body.sandbox_id).toMatch(/^docker-[0-9a-f]{12}$/)
    expect(await say(client, sessionPath(id), 'my name is Ada')).toContain('turns=1 last="my name is Ada"')
    expect(await say(client, sessionPath(id), 'what is my name?')).toContain('turns=2')
    const events: string[] = []
    const answering = client.stream(
      sessionPath(id),
      { model: 'openclaw', input: 'stream' },
      AbortSignal.timeout(minute),
    )
    for await (const { name } of answering) events.push(name ?? '')
    expect(events).toContain('response.output_text.delta')
    expect(events).toContain('response.completed')
  })

  it('take a change of their configuration while they run', async () => {
    const changed = await client.patch(`/v1/instances/${id}`, { openclaw_config: { 'messages.responsePrefix': 'Hi' } })
    expect([changed.status, changed.body.status]).toEqual([200, 'running'])
  })

  it('have the plugins of their channels, whose own words tell of it', async () => {
    const connected = await client.post(`/v1/instances/${id}/channels/mattermost/connect`, {
      config: { bot_token: 'made-up', base_url: `http://${outside.address}:9` },
    })
    expect([connected.status, connected.body.detail.error]).toEqual([502, expect.stringContaining('SsrFBlockedError')])
    const projects = await dockerd.docker('exec', `chowder-${id}`, 'ls', '/agent/home/state/npm/projects')
    expect(projects).toContain('chowder-mattermost')
  })

  it('keep memory and files over stop and start, and have their files reached meanwhile', async () => {
    const put = (text: string) => client.put(`/v1/instances/${id}/files/content`, { path: 'notes/a.md', content: text })
    expect((await put('one')).status).toBeLessThan(300)
    expect((await client.post(`/v1/instances/${id}/stop`)).body.status).toBe('stopped')
    expect((await inspect()).State).toMatchObject({ Running: false, ExitCode: 0 })
    expect((await content('notes/a.md')).body.content).toBe('one')
    expect((await put('two')).status).toBeLessThan(300)
    expect((await client.post(`/v1/instances/${id}/start`)).status).toBeLessThan(300)
    await waitForStatus(client, id, 'running')
    expect(await say(client, sessionPath(id), 'still there?')).toContain('turns=4')
    expect((await content('notes/a.md')).body.content).toBe('two')
  })

  it('come back when their container is killed', async () => {
    const { StartedAt } = (await inspect()).State
    await dockerd.docker('kill', `chowder-${id}`)
    await until('the repair', async () => (await inspect()).State.StartedAt !== StartedAt, minute)
    await waitForStatus(client, id, 'running')
    expect(await say(client, sessionPath(id), 'and now?')).toContain('turns=5')
  })

  it('outlive Chowder, whose next start adopts them; deleting leaves nothing', async () => {
    const { Id, State } = await inspect()
    expect(await chowder.kill('SIGINT')).toBe(0)
    expect(chowder.output()).toContain('the agents go on running in their containers')
    chowder = await startChowder({ dataDir, env })
    await until('the welcome', () => chowder.output().includes('Each agent is a container without privileges'))
    client = api(chowder.url, key)
    expect(await say(client, sessionPath(id), 'the same?')).toContain('turns=6')
    const now = await inspect()
    expect([now.Id, now.State.StartedAt]).toEqual([Id, State.StartedAt])
    expect((await client.delete(`/v1/instances/${id}`)).status).toBe(204)
    const ofIt = ['--filter', `label=chowder.instance=${id}`]
    const left = async () =>
      (await dockerd.docker('ps', '-aq', ...ofIt)) + (await dockerd.docker('volume', 'ls', '-q', ...ofIt))
    await until('the end of all', async () => (await left()) === '', minute)
  })
})
