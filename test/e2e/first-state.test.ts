import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, mkdtempDisposable, open, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { expect, test } from 'vitest'
import type { ModelProvider } from '#database/schema.ts'
import { renderConfig } from '#openclaw/config/config.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { configPath, gatewayCommand, gatewayEnv, gatewayFolders, secretsPath } from '#openclaw/inside/launch.ts'
import { startAgent } from '../support/agent.ts'
import { freePort } from '../support/free-port.ts'
import { preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

const signal = new AbortController().signal
const startMs = 120_000
/** The step of OpenClaw's start that migrates the state folder, in its trace. */
const migration = 'legacy-state-migrations'

/** Starts the gateway of a new agent until it is ready, and ends it. Returns its output and what identifies it. */
async function firstStart(provider: ModelProvider, { hasFirstState = true } = {}) {
  const release = await preparedRelease()
  await using folder = await mkdtempDisposable(join(tmpdir(), 'openclaw-first-'))
  const home = folder.path
  const paths = { node: process.execPath, release, home, port: await freePort() }
  for (const name of gatewayFolders) await mkdir(join(home, name))
  const { port } = paths
  const secretsFile = join(home, secretsPath)
  const baseUrl = 'http://127.0.0.1:9'
  const inputs = { release: 'v1', provider, baseUrl, secretsFile, port, channels: [], skills: {}, overrides: {} }
  const config = renderConfig(inputs)
  await writeFile(secretsFile, JSON.stringify({ gatewayToken: home, relayToken: home }), { mode: 0o600 })
  await writeFile(join(home, configPath), JSON.stringify(config), { mode: 0o600 })

  await using output = await open(join(home, 'output'), 'w')
  const env: Record<string, string> = { ...gatewayEnv(paths), OPENCLAW_GATEWAY_STARTUP_TRACE: '1' }
  if (!hasFirstState) env.NODE_COMPILE_CACHE = join(home, 'cache')
  const [command = '', ...args] = gatewayCommand(paths)
  const child = spawn(command, args, { env, cwd: home, stdio: ['ignore', output.fd, output.fd] })
  const ended = once(child, 'exit')
  try {
    const endpoint = { kind: 'tcp', host: '127.0.0.1', port } as const
    const isReady = () => probeHealth(endpoint, '/startupz', { timeoutMs: 1000, signal })
    await until('the gateway to start', isReady, startMs)
  } finally {
    child.kill('SIGTERM')
    await ended
  }
  using database = new DatabaseSync(join(home, 'state/state/openclaw.sqlite'), { readOnly: true })
  const { private_key_pem: key, device_id: device } = database.prepare('SELECT * FROM device_identities').get() ?? {}
  const { hmac } = database.prepare('SELECT hex(hmac_key) AS hmac FROM config_revision_keys').get() ?? {}
  const journalKey = (await readFile(join(home, 'state/config-journal-fingerprint.key'))).toString('hex')
  return { output: await readFile(join(home, 'output'), 'utf8'), identity: [key, device, hmac, journalKey] }
}

test(
  'new agents start without a migration from the first state of their release, and share no identity',
  async () => {
    const one = await firstStart('anthropic')
    const other = await firstStart('openai')
    for (const { output } of [one, other]) {
      expect(output).toContain('startup trace')
      expect(output).not.toContain(migration)
    }
    const values = [...one.identity, ...other.identity]
    for (const value of values) expect(value).toEqual(expect.any(String))
    expect(new Set(values).size).toBe(values.length)
  },
  startMs * 2,
)

test(
  'without a first state OpenClaw migrates the new folder itself',
  async () => {
    const { output } = await firstStart('anthropic', { hasFirstState: false })
    expect(output).toContain(migration)
  },
  startMs,
)

test(
  'an agent of a customer starts from it too',
  async () => {
    const agent = await startAgent()
    try {
      const log = await readFile(join(agent.dataDir, 'sandboxes', agent.id, 'gateway.log'), 'utf8')
      expect(log).toContain('[gateway]')
      expect(log).not.toContain('Doctor changes')
    } finally {
      await agent.close()
    }
  },
  startMs,
)
