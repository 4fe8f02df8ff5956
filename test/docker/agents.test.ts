import { execFile } from 'node:child_process'
import { chmod, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import type Dockerode from 'dockerode'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { dockerEnv, prepareImage } from '../support/agent-sandboxes.ts'
import { type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { dockerFolders, searchInstallation } from '../support/canary/installation.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { type ChowderProcess, removeDataDir, startChowder } from '../support/chowder-process.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

const run = promisify(execFile)

const minute = 60_000
const providerKey = newSecret('provider key', 'sk-ant-')
const fakeProvider = fileURLToPath(new URL('../support/fake-model-provider.mjs', import.meta.url))

type Container = Dockerode.ContainerInspectInfo

/** The rights of a container, each as a number: more is looser. */
const looseness: Record<string, (container: Container) => number> = {
  capabilities: ({ HostConfig: { CapDrop, CapAdd } }) => (CapDrop?.includes('ALL') ? (CapAdd ?? []).length : 14),
  'new privileges': ({ HostConfig }) => Number(!HostConfig.SecurityOpt?.includes('no-new-privileges')),
  privileged: ({ HostConfig }) => Number(HostConfig.Privileged),
  'the user root': ({ Config }) => Number(['', '0', 'root'].includes(Config.User)),
  memory: ({ HostConfig }) => HostConfig.Memory || Number.POSITIVE_INFINITY,
  swap: ({ HostConfig }) => HostConfig.MemorySwap || Number.POSITIVE_INFINITY,
  CPU: ({ HostConfig }) => HostConfig.NanoCpus || Number.POSITIVE_INFINITY,
  processes: ({ HostConfig }) => HostConfig.PidsLimit || Number.POSITIVE_INFINITY,
  'a root file system to write to': ({ HostConfig }) => Number(!HostConfig.ReadonlyRootfs),
  'folders of the host': ({ HostConfig }) => HostConfig.Binds?.length ?? 0,
  'ports beyond this host': ({ HostConfig }) =>
    Object.values<{ HostIp: string }[]>(HostConfig.PortBindings)
      .flat()
      .filter(({ HostIp }) => HostIp !== '127.0.0.1').length,
  'namespaces of the host': ({ HostConfig: { NetworkMode, PidMode, IpcMode, UsernsMode, UTSMode } }) =>
    [NetworkMode, PidMode, IpcMode, UsernsMode, UTSMode].filter((mode) => mode === 'host').length,
}

/** In what a container is looser than another. */
const looserThan = (held: Container, container: Container): string[] =>
  Object.entries(looseness).flatMap(([trait, of]) => (of(container) > of(held) ? [trait] : []))

// Compose has a real agent in a container as well.
describe('real agents in containers', { tags: ['long'] }, () => {
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
    env = { ...dockerEnv(dockerd.host), ANTHROPIC_BASE_URL: `http://${outside.address}:${outside.port}` }
    await prepareImage(dockerd.host)
    dataDir = await mkdtemp(join(tmpdir(), 'chowder-docker-'))
    await chmod(dataDir, 0o711) // the database runs as another user
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
  /** The turns of the default session so far. */
  let turns = 0
  async function expectRemembers(text: string): Promise<void> {
    turns += 1
    expect(await say(client, sessionPath(id), text)).toContain(`turns=${turns} last="${text}"`)
  }
  const content = (path: string) => client.get(`/v1/instances/${id}/files/content?path=${path}`)

  it('have at least the limits of the containers that OpenClaw’s own fleet command makes', {
    timeout: 10 * minute,
  }, async () => {
    const openclaw = join(await preparedRelease(), 'node_modules/openclaw/openclaw.mjs')
    const ours = await inspect()
    const { Image } = ours.Config
    const fleet = [openclaw, 'fleet', 'create', 'acme', '--no-start', '--image', Image]
    const { PATH = '' } = process.env
    await run(process.execPath, fleet, { env: { PATH, HOME: dataDir, DOCKER_HOST: dockerd.host } })
    const loose = ['--name', 'loose', '-p', '18789', '--user', '0', '--pid', 'host']
    await dockerd.docker('create', ...loose, Image, 'true')
    const [upstream, anything] = JSON.parse(await dockerd.docker('inspect', 'openclaw-cell-acme', 'loose'))
    await dockerd.docker('rm', 'openclaw-cell-acme', 'loose')
    expect(looserThan(upstream, ours)).toEqual([])
    expect(looserThan(ours, upstream)).toEqual(['swap', 'a root file system to write to', 'folders of the host'])
    const also = Object.keys(looseness).filter((trait) => !/privileged|root file|folders/.test(trait))
    expect(looserThan(upstream, anything)).toEqual(also)
  })

  it('answer, and remember', async () => {
    expect((await client.get(`/v1/instances/${id}`)).body.sandbox_id).toMatch(/^docker-[0-9a-f]{12}$/)
    const cached = ['sh', '-c', 'ls "$NODE_COMPILE_CACHE"/*-$(id -u) | head -n 1']
    expect(await dockerd.docker('exec', `chowder-${id}`, ...cached), 'the compile cache').toMatch(/./)
    await expectRemembers('my name is Ada')
    await expectRemembers('what is my name?')
    const events: string[] = []
    const answering = client.stream(
      sessionPath(id),
      { model: 'openclaw', input: 'stream' },
      AbortSignal.timeout(minute),
    )
    for await (const { name } of answering) events.push(name ?? '')
    expect(events).toContain('response.output_text.delta')
    expect(events).toContain('response.completed')
    turns += 1
  })

  it('take a change of their configuration while they run', async () => {
    const changed = await client.patch(`/v1/instances/${id}`, { openclaw_config: { 'messages.responsePrefix': 'Hi' } })
    expect([changed.status, changed.body.status]).toEqual([200, 'running'])
  })

  it('have the plugins of their channels, which report themselves', async () => {
    const connected = await client.post(`/v1/instances/${id}/channels/mattermost/connect`, {
      config: { bot_token: 'made-up', base_url: `http://${outside.address}:9` },
    })
    expect([connected.status, connected.body.detail.error]).toEqual([502, expect.stringContaining('SsrFBlockedError')])
    const projects = await dockerd.docker('exec', `chowder-${id}`, 'ls', '/agent/home/state/npm/projects')
    expect(projects).toContain('chowder-mattermost')
  })

  it('keep memory and files over stop and start, and their files can be read meanwhile', async () => {
    const put = (text: string) => client.put(`/v1/instances/${id}/files/content`, { path: 'notes/a.md', content: text })
    expect((await put('one')).status).toBeOneOf([200, 201, 202, 204])
    expect((await client.post(`/v1/instances/${id}/stop`)).body.status).toBe('stopped')
    expect((await inspect()).State).toMatchObject({ Running: false, ExitCode: 0 })
    expect((await content('notes/a.md')).body.content).toBe('one')
    expect((await put('two')).status).toBeOneOf([200, 201, 202, 204])
    expect((await client.post(`/v1/instances/${id}/start`)).status).toBeOneOf([200, 201, 202, 204])
    await waitForStatus(client, id, 'running')
    await expectRemembers('still there?')
    expect((await content('notes/a.md')).body.content).toBe('two')
  })

  it('are started again when their container is killed', async () => {
    const { StartedAt } = (await inspect()).State
    await dockerd.docker('kill', `chowder-${id}`)
    await until('the repair', async () => (await inspect()).State.StartedAt !== StartedAt, minute)
    await waitForStatus(client, id, 'running')
    await expectRemembers('and now?')
  })

  it('are started again when they used too much memory, and their history names the reason', async () => {
    const { StartedAt } = (await inspect()).State
    // The gateway is to be ended first, not the program that takes the memory, whose own words must not match.
    const script = `for process in /proc/[0-9]*; do
        if tr '\\0' ' ' <$process/cmdline | grep -q '[o]penclaw'; then echo 1000 >$process/oom_score_adj; fi
      done
      exec node -e 'const held = []; for (;;) held.push(Buffer.alloc(16 << 20, 1))'`
    await dockerd.docker('exec', `chowder-${id}`, 'sh', '-c', script).catch(() => {}) // it is ended, too
    await until('the repair', async () => (await inspect()).State.StartedAt !== StartedAt, minute)
    await waitForStatus(client, id, 'running')
    const { body: history } = await client.get(`/v1/instances/${id}/events`)
    expect(JSON.stringify(history)).toContain('oom')
    await expectRemembers('and now?')
  })

  it('outlive Chowder, whose next start adopts them; a delete leaves nothing', async () => {
    const { Id, State } = await inspect()
    expect(await chowder.kill('SIGINT')).toBe(0)
    expect(chowder.output()).toContain('the agents go on running; the next start adopts them')
    chowder = await startChowder({ dataDir, env })
    await until('the welcome', () => chowder.output().includes('Each agent is a container without privileges'))
    client = api(chowder.url, key)
    await expectRemembers('the same?')
    const now = await inspect()
    expect([now.Id, now.State.StartedAt]).toEqual([Id, State.StartedAt])
    await searchInstallation(dataDir, { folders: await dockerFolders(dockerd.host) })
    expect((await client.delete(`/v1/instances/${id}`)).status).toBe(204)
    const ofIt = ['--filter', `label=chowder.instance=${id}`]
    const left = async () =>
      (await dockerd.docker('ps', '-aq', ...ofIt)) + (await dockerd.docker('volume', 'ls', '-q', ...ofIt))
    await until('the end of all', async () => (await left()) === '', minute)
  })
})
