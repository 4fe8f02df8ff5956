import { type ChildProcess, spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { renderConfig } from '#openclaw/config/config.ts'
import { parseOverrides } from '#openclaw/config/overrides.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import {
  configPath,
  gatewayCommand,
  gatewayEnv,
  gatewayFolders,
  roomFolders,
  secretsPath,
  toolRoom,
} from '#openclaw/inside/launch.ts'
import type { SandboxPaths } from '#sandbox/driver.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { say, sessionPath, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { freePort } from '../support/free-port.ts'
import { preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

// A real OpenClaw with the programs of both rooms. The room is a user namespace without a network: what else keeps it
// apart is the driver's, and tested there.

const programs = join(import.meta.dirname, '../../src/sandbox/room')
const token = newSecret('gateway token')
const signal = new AbortController().signal

let model: FakeModelProvider
let paths: SandboxPaths
let gateway: ChildProcess
let room: ChildProcess

const inHome = (path: string) => join(paths.home, path)

/** The agent's shared folder and the room's, in a mount namespace of the room's own. */
const mounts = 'mount --bind "$1" "$2" && mount -t tmpfs -o ro tmpfs "$2/$3" && shift 3 && exec "$@"'

async function startRoom(): Promise<ChildProcess> {
  const shared = join(paths.room?.root ?? '', toolRoom.place)
  await mkdir(shared, { recursive: true })
  const program = [join(programs, 'room-server.py'), inHome('room/exec.sock'), shared]
  return spawn(
    'unshare',
    ['--user', '--map-root-user', '--mount', '--net', '--pid', '--fork', '--kill-child', '--', 'sh', '-c', mounts, 'sh']
      .concat(inHome(toolRoom.folder), shared, toolRoom.hidden)
      .concat(program),
    { env: { HOME: '/tmp', PATH: '/usr/local/bin:/usr/bin:/bin' }, stdio: 'inherit' },
  )
}

beforeAll(async () => {
  const release = await preparedRelease()
  model = await startFakeModelProvider()
  const home = await mkdtemp(join(tmpdir(), 'two-rooms-'))
  const root = await mkdtemp(join(tmpdir(), 'room-'))
  const ssh = join(programs, 'room-ssh.py')
  paths = { node: process.execPath, release, home, port: await freePort(), room: { ssh, root } }
  for (const folder of [...gatewayFolders, ...roomFolders]) {
    await mkdir(join(home, folder), { recursive: true })
    await writeFile(join(home, folder, '.keep'), '')
  }
  const config = renderConfig({
    ...{ release: 'v1', provider: 'anthropic', baseUrl: model.url, port: paths.port },
    secretsFile: join(home, secretsPath),
    channels: [],
    skills: { 'a-skill': { env: { GIVEN: 'given-1', KEPT: 'kept-1' }, shell_env: ['GIVEN'] } },
    room: { ssh, root, workspace: join(home, toolRoom.folder) },
    // What no API would store.
    overrides: parseOverrides({
      agents: { defaults: { sandbox: { mode: 'off' } } },
      tools: { exec: { host: 'gateway' }, elevated: { enabled: true } },
    }).tree,
  })
  const secrets: GatewaySecrets = { gatewayToken: token, relayToken: 'sk-1' }
  await writeFile(join(home, secretsPath), JSON.stringify(secrets), { mode: 0o600 })
  await writeFile(join(home, configPath), JSON.stringify(config), { mode: 0o600 })
  room = await startRoom()
  const [command = '', ...args] = gatewayCommand(paths)
  gateway = spawn(command, args, { env: gatewayEnv(paths), cwd: home, stdio: 'ignore' })
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port: paths.port } as const
  await until('the gateway to start', () => probeHealth(endpoint, '/startupz', { timeoutMs: 2000, signal }), 120_000)
}, 300_000)
afterAll(async () => {
  gateway?.kill('SIGKILL')
  room?.kill('SIGKILL')
  await model?.close()
  await rm(paths.home, { recursive: true, force: true })
  await rm(paths.room?.root ?? '', { recursive: true, force: true })
})

interface Part {
  type: string
  content?: unknown
}

/** What the model was told of the last call of a tool. */
function toolResult({ requests }: FakeModelProvider): string {
  const { messages } = (requests.at(-1) ?? { body: { messages: [] } }).body as {
    messages: { content: string | Part[] }[]
  }
  const parts = messages.flatMap(({ content }) => (typeof content === 'string' ? [] : content))
  return JSON.stringify(parts.filter(({ type }) => type === 'tool_result').at(-1)?.content)
}

/** Has the model call a tool; returns what the model was told of its result. */
async function useTool(name: string, input: object): Promise<string> {
  const answer = await fetch(`http://127.0.0.1:${paths.port}/v1/responses`, {
    method: 'POST',
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
    body: JSON.stringify({ model: 'openclaw', input: `[[fake:tool=${name} ${JSON.stringify(input)}]]` }),
    signal: AbortSignal.timeout(60_000),
  })
  expect(answer.status).toBe(200)
  await answer.arrayBuffer()
  return toolResult(model)
}

test('a command runs in the room, with the workspace, without a network, and without the gateway’s environment', async () => {
  await writeFile(inHome('state/workspace/from-gateway.txt'), 'seen in the room')
  const command =
    'cat from-gateway.txt; echo made > made.txt; ls /proc/net | wc -l; ip link 2>/dev/null | grep -c UP; env | sort'
  const result = await useTool('exec', { command })
  expect(result).toContain('seen in the room')
  expect(result).not.toContain('OPENCLAW_STATE_DIR')
  expect(await readFile(inHome('state/workspace/made.txt'), 'utf8')).toBe('made\n')
  const curl = `curl -s -m 5 http://127.0.0.1:${paths.port}/healthz || echo no network`
  expect(await useTool('exec', { command: curl })).toContain('no network')
})

test('a command has the variables of skills that are named for its shell, and no others', async () => {
  expect(await useTool('exec', { command: 'echo "<$GIVEN/$KEPT>"' })).toContain('<given-1/>')
})

test('A11: file tools reach the workspace alone, and no override brings the gateway’s files back', async () => {
  await writeFile(inHome('state/workspace/note.txt'), 'a note')
  expect(await useTool('read', { path: 'note.txt' })).toContain('a note')
  await useTool('write', { path: 'written.txt', content: 'by a tool' })
  expect(await readFile(inHome('state/workspace/written.txt'), 'utf8')).toBe('by a tool')
  await symlink(inHome(secretsPath), inHome('state/workspace/link.txt'))
  for (const path of [inHome(secretsPath), '../secrets.json', 'link.txt']) {
    expect(await useTool('read', { path })).not.toContain(token)
  }
  for (const input of [{ host: 'gateway' }, { elevated: true }]) {
    expect(await useTool('exec', { command: 'pwd', ...input })).toMatch(/not allowed|not available/)
  }
})

test('the folder that OpenClaw loads plugins from cannot be made in the room', async () => {
  const command = 'mkdir -p .openclaw/extensions; mv .openclaw x; rm -rf .openclaw; ls -a .openclaw x; echo done'
  expect(await useTool('exec', { command })).toMatch(/Read-only file system|busy/)
  await expect(readFile(inHome('state/workspace/.openclaw/.keep'))).resolves.toBeDefined()
})

test('while the room is away, tools fail and run nowhere else', async () => {
  room.kill('SIGKILL')
  await until('the room to end', () => room.signalCode !== null)
  expect(await useTool('exec', { command: 'touch in-the-gateway' })).toContain('cannot be reached')
  await expect(readFile(inHome('state/workspace/in-the-gateway'))).rejects.toThrow()
})

describe('A11: an agent in a jail that is asked for its configuration', () => {
  let agent: TestAgent

  beforeAll(async () => {
    agent = await startAgent({ env: { LOCAL_ISOLATION: 'jail' } })
  }, 300_000)
  afterAll(() => agent?.close(), 60_000)

  /** What the agent finds, as its model was told. */
  async function search(id: string): Promise<string> {
    // Not what is in them: it would be in the transcript.
    const command =
      'pwd; find / -name "openclaw*.json" -o -name secrets.json -o -name "*.sqlite" 2>/dev/null; grep -la OPENCLAW_STATE /proc/*/environ'
    await say(agent.client, sessionPath(id, 'search'), `[[fake:tool=exec ${JSON.stringify({ command })}]]`)
    return toolResult(agent.provider)
  }

  test('shows it with one room, and has none with two', async () => {
    const { body } = await agent.client.post('/v1/instances', { name: 'b', isolation: 'two_rooms' })
    await waitForStatus(agent.client, body.id, 'running')
    const one = await search(agent.id)
    for (const found of ['/state/openclaw.json', '/state/secrets.json', '/openclaw-agent.sqlite', '/environ'])
      expect(one).toContain(found)
    const two = await search(body.id)
    expect(two).toContain('/room/')
    expect(two).not.toMatch(/openclaw\.json|secrets\.json|sqlite|environ/)

    const configured = await agent.client.patch(`/v1/instances/${body.id}/skills/github`, {
      env: { GIVEN: 'given-2', KEPT: 'kept-2' },
      shell_env: ['GIVEN'],
    })
    expect(configured.status, JSON.stringify(configured.body)).toBe(204)
    const command = 'echo "<$GIVEN/$KEPT>"'
    const look = `[[fake:tool=exec ${JSON.stringify({ command })}]]`
    await until('the variable', async () => {
      await waitForStatus(agent.client, body.id, 'running')
      await say(agent.client, sessionPath(body.id, 'variables'), look)
      return toolResult(agent.provider).includes('<given-2/>')
    })
  }, 240_000)
})
