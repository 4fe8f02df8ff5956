import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { channelNames } from '#api/channels/catalogue.ts'
import { mergeSettings } from '#api/channels/settings.ts'
import { renderConfig } from '#openclaw/config/config.ts'
import { readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { configPath, gatewayCommand, gatewayEnv, gatewayFolders, secretsPath } from '#openclaw/inside/launch.ts'
import { linkChannelPlugin, pluginChannels } from '#openclaw/release/channel-plugins.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import type { Endpoint, SandboxAccess, SandboxPaths } from '#sandbox/driver.ts'
import { freePort } from '../support/free-port.ts'
import { prepareChannels, preparedRelease } from '../support/release.ts'
import { until } from '../support/until.ts'

const token = 'a-token-of-this-test-and-of-no-other'
const signal = new AbortController().signal
const startMs = 420_000
/** A port that nobody listens on: no platform is asked. */
const nowhere = 'http://127.0.0.1:9'

/** What a caller gives to connect each channel, all of it made up. */
const given: Record<string, Record<string, unknown>> = {
  telegram: { token: '1:a', apiRoot: nowhere },
  discord: { token: 'MTIz.x.y', proxy: nowhere },
  slack: { bot_token: 'xoxb-1-2-abc', app_token: 'xapp-1-A-1-abc' },
  whatsapp: {},
  googlechat: { audience_type: 'app-url', audience: 'https://acme.example/googlechat' },
  signal: { account: '+15550001111' },
  matrix: { homeserver: nowhere, user_id: '@bot:acme.example', access_token: 'syt_a' },
  msteams: {
    app_id: '11111111-1111-1111-1111-111111111111',
    app_password: 'made-up',
    tenant_id: '22222222-2222-2222-2222-222222222222',
  },
  mattermost: { bot_token: 'made-up', base_url: nowhere },
  nostr: { relays: ['ws://127.0.0.1:9'] },
  line: { channel_access_token: 'made-up', channel_secret: 'made-up' },
}

let paths: SandboxPaths
let child: ChildProcess
let gateway: GatewayClient

/** Just enough of a sandbox for a folder of this machine. */
const folderAsSandbox = (home: string) =>
  ({
    async exec(_id: string, [program = '', ...args]: readonly string[]) {
      const { stdout, stderr } = await promisify(execFile)(program, args).catch((error) => error)
      return { exitCode: 0, stdout, stderr }
    },
    files: () => ({
      async write(path: string, content: Buffer) {
        await mkdir(dirname(join(home, path)), { recursive: true })
        await writeFile(join(home, path), content)
      },
    }),
  }) as unknown as SandboxAccess

beforeAll(async () => {
  await prepareChannels()
  const release = await preparedRelease()
  const home = await mkdtemp(join(tmpdir(), 'openclaw-channels-'))
  paths = { node: process.execPath, release, home, port: await freePort() }
  const endpoint: Endpoint = { kind: 'tcp', host: '127.0.0.1', port: paths.port }
  for (const folder of gatewayFolders) await mkdir(join(home, folder))
  for (const channel of pluginChannels(defaultRelease)) {
    await linkChannelPlugin(folderAsSandbox(home), 'x', { paths, release: defaultRelease, channel }, signal)
  }
  const config = renderConfig({
    release: defaultRelease,
    provider: 'anthropic',
    baseUrl: nowhere,
    secretsFile: join(home, secretsPath),
    port: paths.port,
    channels: channelNames.map((channel) => ({
      channel,
      enabled: true,
      config: mergeSettings(channel, given[channel] ?? {}, null),
    })),
    skills: {},
    overrides: {},
  })
  const secrets: GatewaySecrets = { gatewayToken: token, relayToken: 'sk-1' }
  await writeFile(join(home, secretsPath), JSON.stringify(secrets), { mode: 0o600 })
  await writeFile(join(home, configPath), JSON.stringify(config), { mode: 0o600 })
  const [command = '', ...args] = gatewayCommand(paths)
  const proxied = { HTTPS_PROXY: nowhere, HTTP_PROXY: nowhere, NO_PROXY: '127.0.0.1' }
  child = spawn(command, args, { env: { ...gatewayEnv(paths), ...proxied }, stdio: 'ignore' })
  await until('the gateway', () => probeHealth(endpoint, '/startupz', { timeoutMs: 2000, signal }), startMs)
  gateway = await connectGateway(endpoint, token, { signal, timeoutMs: 30_000 })
})

afterAll(async () => {
  gateway?.close()
  child?.kill('SIGKILL')
  await until('the gateway to end', () => child === undefined || child.signalCode !== null || child.exitCode !== null)
  await rm(paths.home, { recursive: true, force: true, maxRetries: 5 })
})

// e2e/channels.test.ts shows with a few channels what this shows of all.
describe('a real gateway that was given every channel at once', { tags: ['long'] }, () => {
  test.each(channelNames)('speaks %s, takes its settings for complete, and is not connected', async (channel) => {
    const status = await until(
      'the channel',
      async () => {
        const seen = await readChannelStatus(gateway, channel).catch(() => null) // it answers late
        return seen && (seen.configured || seen.error !== null) ? seen : null
      },
      60_000,
    )
    // Google wants a service account besides the documented fields.
    expect(status).toMatchObject({ configured: channel !== 'googlechat', connected: false })
  })
})
