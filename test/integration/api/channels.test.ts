import { crc32, deflateSync } from 'node:zlib'
import { PNG } from 'pngjs'
import encodeQr from 'qr'
import { afterAll, beforeEach, describe, expect, test } from 'vitest'
import { channelConfigPlace } from '#instances/gateway/configuration.ts'
import { newId } from '#platform/ids.ts'
import type { ExecResult } from '#sandbox/driver.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { Refusal, startFakeGateway } from '../../support/fake-gateway.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

type Json = Record<string, unknown>

const up = { running: true, connected: true, lifecycle: 'ready', configured: true, probe: { ok: true } }
const unauthorized = {
  running: false,
  lifecycle: 'blocked',
  terminalDisconnect: true,
  configured: true,
  lastError: 'getMe returned 401 from Telegram',
  probe: { ok: false, status: 401, error: 'Unauthorized' },
}
const scanned = 'https://wa.me/settings/linked_devices#2@abc'

let id: string
/** The gateway's report about the account of each channel, computed from its current settings. */
let accounts: Record<string, (settings: Json) => Json>
let login: Json

const call = (method: 'GET' | 'POST' | 'PATCH', path: string, body?: unknown) =>
  chowder.call(method, `/v1/instances/${id}${path}`, { key, ...(body !== undefined && { body }) })
const connect = (channel: string, config?: Json) =>
  call('POST', `/channels/${channel}/connect`, config === undefined ? undefined : { config })
const statusOf = async (channel: string) => (await call('GET', `/channels/${channel}/status`)).body
const settingsOf = (channel: string) => (gateway.config.channels as Json | undefined)?.[channel] as Json | undefined
const callsOf = (method: string) => gateway.calls.filter((made) => made.method === method)
const rowOf = async (channel: string) =>
  (await chowder.database.pool.query('SELECT * FROM channels WHERE instance_id = $1 AND channel = $2', [id, channel]))
    .rows[0]

const refusal = (message: string) => new Refusal({ code: 'INVALID_REQUEST', message })
const done = (stdout = ''): ExecResult => ({ exitCode: 0, stdout, stderr: '' })

function qrImage(text: string): string {
  const modules = encodeQr(text, 'raw')
  const scale = 4
  const size = modules.length * scale
  const png = new PNG({ width: size, height: size })
  for (let pixel = 0; pixel < size * size; pixel += 1) {
    const dark = modules[Math.floor(pixel / size / scale)]?.[Math.floor((pixel % size) / scale)]
    png.data.set([dark ? 0 : 255, dark ? 0 : 255, dark ? 0 : 255, 255], pixel * 4)
  }
  return PNG.sync.write(png).toString('base64')
}

const signatureEnd = 8
const headerEnd = 33

/** An image of a few kilobytes that unpacks to hundreds of megabytes: it has the header of `png` with a larger size. */
function hugeImage(png: Buffer): Buffer {
  const side = 8000
  const chunk = (typed: Buffer) => {
    const framed = Buffer.concat([Buffer.alloc(4), typed, Buffer.alloc(4)])
    framed.writeUInt32BE(typed.length - 4)
    framed.writeUInt32BE(crc32(typed), framed.length - 4)
    return framed
  }
  const header = Buffer.from(png.subarray(signatureEnd + 4, headerEnd - 4))
  header.writeUInt32BE(side, 4)
  header.writeUInt32BE(side, 8)
  header.set([1, 0], 12) // one bit a pixel, grey
  const pixels = deflateSync(Buffer.alloc(side * (1 + side / 8)))
  const data = chunk(Buffer.concat([Buffer.from('IDAT'), pixels]))
  return Buffer.concat([png.subarray(0, signatureEnd), chunk(header), data, chunk(Buffer.from('IEND'))])
}

const gateway = await startFakeGateway({})
Object.assign(gateway.methods, {
  'channels.status': ({ channel }: Json) => {
    const settings = settingsOf(String(channel))
    const account = settings && accounts[String(channel)]?.(settings)
    if (!account) throw refusal(`unknown channel: ${channel}`)
    return { channelAccounts: { [String(channel)]: [account] }, statusIssues: [] }
  },
  'channels.start': () => ({ started: true }),
  'channels.logout': () => ({ loggedOut: true }),
  'channels.pairing.list': () => ({
    requests: [
      {
        requestId: 'r-1',
        accountId: 'default',
        senderId: '777',
        metadata: { firstName: 'Ann', userID: '777', name: 'Ann B' },
        createdAt: '2026-11-25T04:03:59.981Z',
        expiresAt: '2026-11-25T05:03:59.981Z',
      },
    ],
  }),
  'channels.pairing.approve': () => ({}),
  'plugins.refresh': () => ({ ok: true }),
  'web.login.start': () => login,
  'web.login.wait': () => ({ connected: false, message: 'Still waiting for the QR scan.' }),
})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
await chowder.startWorker()
const { key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

beforeEach(async () => {
  gateway.behaviour.onCall = () => {}
  driver.onExec = () => undefined
  driver.onCall = () => {}
  accounts = { telegram: () => up, discord: () => up, whatsapp: () => ({ ...up, running: false, connected: false }) }
  id = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
  await until('the instance to run', async () => (await call('GET', '')).body.status === 'running')
  gateway.config = JSON.parse(driver.file(id, 'state/openclaw.json') ?? '{}')
  gateway.calls.length = 0
  driver.calls.length = 0
})

describe('the catalogue', () => {
  test('lists every channel and whether it is enabled, also while the instance is stopped', async () => {
    await connect('telegram', { token: '1:a' })
    const expected = [
      { channel: 'telegram', connection_type: 'token', enabled: true },
      { channel: 'discord', connection_type: 'token', enabled: false },
      { channel: 'slack', connection_type: 'token', enabled: false },
      { channel: 'whatsapp', connection_type: 'interactive', enabled: false },
      ...['googlechat', 'signal', 'matrix', 'msteams', 'mattermost', 'nostr', 'line'].map((channel) => ({
        channel,
        connection_type: 'token',
        enabled: false,
      })),
    ]
    expect((await call('GET', '/channels')).body).toEqual(expected)
    await call('POST', '/stop')
    expect((await call('GET', '/channels')).body).toEqual(expected)
  })

  test('describes a channel without a key, in the same way for every instance id', async () => {
    const expected = {
      channel: 'discord',
      connection_type: 'token',
      required_fields: { token: 'Your Discord bot token from the Developer Portal.' },
    }
    for (const instance of [id, newId(), 'nonsense']) {
      const { status, body } = await chowder.call('GET', `/v1/instances/${instance}/channels/discord`)
      expect([status, body]).toEqual([200, expected])
    }
    expect((await call('GET', '/channels/whatsapp')).body.required_fields).toEqual({})
  })

  test('has no other channels', async () => {
    for (const channel of ['irc', 'Telegram', 'constructor', '__proto__']) {
      const { status } = await call('GET', `/channels/${encodeURIComponent(channel)}/status`)
      expect(status, channel).toBe(404)
    }
  })
})

describe('a channel without a plugin', () => {
  test('is connected without a restart, by OpenClaw’s names, with pairing, and sealed', async () => {
    const answer = await connect('telegram', { token: '1:secret', historyLimit: 5 })
    expect(answer).toMatchObject({ status: 200 })
    expect(answer.body).toEqual({
      channel: 'telegram',
      status: 'connected',
      qr_data: null,
      qr_image_base64: null,
      message: null,
    })
    expect(settingsOf('telegram')).toEqual({
      botToken: '1:secret',
      dmPolicy: 'pairing',
      historyLimit: 5,
      enabled: true,
    })
    expect(gateway.config).toMatchObject({
      plugins: { allow: ['anthropic', 'telegram'] },
      session: { dmScope: 'per-channel-peer' },
    })
    expect(JSON.stringify(await rowOf('telegram'))).not.toContain('1:secret')
    expect(chowder.logged.join()).not.toContain('1:secret')
    expect(await statusOf('telegram')).toEqual({
      channel: 'telegram',
      enabled: true,
      connected: true,
      details: { configured: true, running: true, issues: [] },
    })
    expect(driver.starts.get(id)).toBe(1)
  })

  test('is sealed for the canonical id of the instance, however the path writes it', async () => {
    const path = `/v1/instances/${id.toUpperCase()}/channels/telegram`
    const answer = await chowder.call('POST', `${path}/connect`, { key, body: { config: { token: '1:a' } } })
    expect(answer.status).toBe(200)
    expect(await statusOf('telegram')).toMatchObject({ enabled: true, connected: true })
    expect((await connect('telegram')).status).toBe(200)
  })

  test('bounds the answers of its gateway, in whose place the agent may answer', async () => {
    await connect('telegram', { token: '1:a' })
    accounts.telegram = () => ({ ...up, connected: false, lastError: 'x'.repeat(100_000) })
    expect((await statusOf('telegram')).details.error).toHaveLength(2000)
    const listed = present(gateway.methods['channels.pairing.list'])
    gateway.methods['channels.pairing.list'] = () => ({
      requests: Array(1000).fill({ requestId: { toString: 1, valueOf: 1 } }),
    })
    const { status, body } = await call('GET', '/channels/telegram/pairings')
    gateway.methods['channels.pairing.list'] = listed
    expect([status, body.length]).toEqual([200, 100])
  })

  test('with refused credentials is a 400 that quotes the gateway, and the stored ones stay', async () => {
    accounts.telegram = ({ botToken }) => (botToken === '1:good' ? up : unauthorized)
    expect(await connect('telegram', { token: '1:bad' })).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('getMe returned 401 from Telegram') },
    })
    expect([settingsOf('telegram'), await rowOf('telegram')]).toEqual([undefined, undefined])
    await connect('telegram', { token: '1:good' })
    expect((await connect('telegram', { token: '1:bad' })).status).toBe(400)
    expect(settingsOf('telegram')?.botToken).toBe('1:good')
    expect(await connect('telegram')).toMatchObject({ status: 200 })
  })

  test('whose platform cannot be reached is a 502 that quotes the gateway', async () => {
    accounts.telegram = () => ({ ...up, connected: false, lastError: 'ENOTFOUND api.telegram.org' })
    expect(await connect('telegram', { token: '1:a' })).toMatchObject({
      status: 502,
      body: { detail: { error: expect.stringContaining('ENOTFOUND api.telegram.org') } },
    })
    expect(settingsOf('telegram')).toBeUndefined()
  })

  test('never shows its credentials, even when the platform’s errors quote them', async () => {
    const token = '123456:a-secret-token'
    const failing = { ...up, connected: false, lastError: `GET https://u:pass@a/bot${token}/getMe failed` }
    accounts.telegram = () => failing
    const refused = await connect('telegram', { token })
    expect(refused.body.detail.error).toContain('GET https://***@a/bot***/getMe failed')
    accounts.telegram = () => up
    expect((await connect('telegram', { token })).status).toBe(200)
    accounts.telegram = () => failing
    const { details } = await statusOf('telegram')
    expect(details.error).toBe('GET https://***@a/bot***/getMe failed')
    expect(chowder.logged.join()).not.toContain(token)
  })

  test('that was stopped is started', async () => {
    accounts.telegram = () => (callsOf('channels.start').length > 0 ? up : { ...up, running: false })
    expect((await connect('telegram', { token: '1:a' })).status).toBe(200)
    expect(callsOf('channels.start')).toHaveLength(1)
  })

  test('that OpenClaw left out after unclean ends says so, and a connect without config starts it alone', async () => {
    await connect('telegram', { token: '1:a' })
    const lastError =
      'gateway restart-loop breaker tripped: 3 unclean boot(s). Run openclaw gateway call channels.start'
    accounts.telegram = () =>
      callsOf('channels.start').length > 0 ? up : { ...up, running: false, lifecycle: 'stopped', lastError }
    const { connected, details } = await statusOf('telegram')
    expect([connected, details.error]).toEqual([false, expect.stringMatching(/connect it again without config\.$/)])
    expect(await connect('telegram')).toMatchObject({ status: 200, body: { status: 'connected' } })
    expect(callsOf('channels.start')).toEqual([{ method: 'channels.start', params: { channel: 'telegram' } }])
    expect(settingsOf('telegram')).toMatchObject({ botToken: '1:a', enabled: true })
    expect((await statusOf('telegram')).connected).toBe(true)
  })

  test('keeps its credentials after a disconnect, and loses them after a logout', async () => {
    await connect('telegram', { token: '1:a', historyLimit: 5 })
    expect((await call('POST', '/channels/telegram/disconnect')).status).toBe(204)
    accounts.telegram = () => ({ configured: true, running: false, lifecycle: 'blocked', stateReason: 'disabled' })
    expect((await statusOf('telegram')).details).not.toHaveProperty('error')
    accounts.telegram = () => up
    expect(settingsOf('telegram')).toMatchObject({ enabled: false, botToken: '1:a' })
    expect(await statusOf('telegram')).toMatchObject({ enabled: false, connected: false })
    expect((await connect('telegram', {})).status).toBe(200)
    expect(settingsOf('telegram')).toMatchObject({ enabled: true, botToken: '1:a', historyLimit: 5 })
    expect((await call('POST', '/channels/telegram/logout')).status).toBe(204)
    expect([settingsOf('telegram'), await rowOf('telegram')]).toEqual([undefined, undefined])
    expect(await connect('telegram', {})).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('token') },
    })
  })

  test('has the settings of both of two concurrent connects', async () => {
    await connect('telegram', { token: '1:a' })
    const [one, other] = await Promise.all([
      connect('telegram', { historyLimit: 7 }),
      connect('telegram', { mediaMaxMb: 3 }),
    ])
    expect([one.status, other.status]).toEqual([200, 200])
    expect(settingsOf('telegram')).toMatchObject({ botToken: '1:a', historyLimit: 7, mediaMaxMb: 3 })
  })

  test('accepts only settings that are complete, bounded and safe', async () => {
    for (const [config, named] of [
      [{}, 'token'],
      [{ token: '' }, 'token'],
      [{ token: 5 }, 'token'],
      [{ token: 'x'.repeat(4097) }, 'token'],
      [{ token: 'a', enabled: false }, 'enabled'],
      [{ token: 'a', accounts: { $include: '/etc/passwd' } }, '$include'],
      [{ token: 'a', transport: { cliPath: '/bin/sh' } }, 'cliPath'],
      [{ token: 'a', accounts: { b: { tokenFile: '../openclaw.json', apiRoot: 'https://a' } } }, 'tokenFile'],
      [{ token: 'a', groups: Array(2000).fill(1) }, '1000 values'],
      [{ token: 'a', groups: JSON.parse(`${'{"a":'.repeat(20)}1${'}'.repeat(20)}`) }, '16 levels'],
    ] as const) {
      expect(await connect('telegram', config as Json), named).toMatchObject({
        status: 400,
        body: { detail: expect.stringContaining(named) },
      })
    }
    expect((await connect('slack', { bot_token: 'xoxb-1' })).body.detail).toContain('app_token')
    expect((await call('POST', '/channels/telegram/connect', { token: 'a' })).status).toBe(422)
  })
})

describe('a channel that needs a plugin', () => {
  test('gets the plugin from this host, and then its settings, while the instance runs', async () => {
    const seen: string[] = []
    driver.onCall = async (method) => {
      if (method === 'prepareChannel') seen.push((await call('GET', '')).body.status)
    }
    expect((await connect('discord', { token: 'MTIz' })).body).toMatchObject({ status: 'connected' })
    expect(seen).toEqual(['running'])
    expect(callsOf('plugins.refresh')).toHaveLength(1)
    expect(settingsOf('discord')).toEqual({ token: 'MTIz', dmPolicy: 'pairing', enabled: true })
    expect(JSON.parse(driver.file(id, 'state/npm/projects/chowder-discord/package.json') ?? '')).toMatchObject({
      dependencies: { '@openclaw/discord': '2026.9.6' },
    })
    expect(driver.starts.get(id)).toBe(1)
    await until('the instance to rest', async () => (await call('GET', '')).body.step === null)
    expect((await call('GET', '')).body).toMatchObject({ status: 'running', error_message: null })
  })

  test('reports the step of its preparation, and is not in the gateway’s configuration before its end', async () => {
    const prepared = Promise.withResolvers<void>()
    driver.onCall = (method) => (method === 'prepareChannel' ? prepared.promise : undefined)
    const connecting = connect('discord', { token: 'MTIz' })
    const seen = await until('the step', async () => {
      const status = await statusOf('discord')
      return status.details.step === 'installPlugin' ? status : null
    })
    expect(seen).toMatchObject({ enabled: true, connected: false })
    expect(settingsOf('discord')).toBeUndefined()
    prepared.resolve()
    expect((await connecting).body.status).toBe('connected')
  })

  test('that is sealed again while it is prepared settles all the same', async () => {
    const prepared = Promise.withResolvers<void>()
    driver.onCall = (method) => (method === 'prepareChannel' ? prepared.promise : undefined)
    const connecting = connect('discord', { token: 'MTIz' })
    await until('the step', async () => (await statusOf('discord')).details.step === 'installPlugin')
    const { sealed_config: before } = await rowOf('discord')
    const place = channelConfigPlace(id, 'discord')
    const again = chowder.vault.seal(chowder.vault.unseal(before, place), place)
    await chowder.database.pool.query('UPDATE channels SET sealed_config = $1 WHERE sealed_config = $2', [
      again,
      before,
    ])
    prepared.resolve()
    expect((await connecting).body.status).toBe('connected')
    expect(await rowOf('discord')).toMatchObject({ step: null, error_message: null, sealed_config: again })
  })

  test('whose preparation fails reports the reason, the instance runs on, and a connect tries again', async () => {
    driver.fail({ method: 'prepareChannel', error: new Error('npm cannot write /srv/secret-path-of-the-host') })
    const refused = await connect('discord', { token: 'MTIz' })
    expect(refused).toMatchObject({ status: 503, body: { detail: expect.stringContaining('installPlugin failed') } })
    const seen = await statusOf('discord')
    expect(seen).toMatchObject({
      enabled: true,
      connected: false,
      details: { error: expect.stringContaining('installPlugin failed') },
    })
    expect(JSON.stringify([refused.body, seen])).not.toContain('secret-path-of-the-host')
    expect(chowder.logged.join('')).toContain('secret-path-of-the-host')
    expect((await call('GET', '')).body).toMatchObject({ status: 'running', error_message: null })
    expect((await connect('discord')).status).toBe(200)
  })

  test('whose settings OpenClaw refuses is a 400, is disabled, and does not prevent a start', async () => {
    gateway.behaviour.onCall = (method, { raw }) => {
      if (method === 'config.patch' && String(raw).includes('bogus')) throw refusal('invalid config: channels.discord')
    }
    expect(await connect('discord', { token: 'MTIz', bogus: 1 })).toMatchObject({
      status: 400,
      body: { detail: expect.stringContaining('invalid config: channels.discord') },
    })
    expect(await statusOf('discord')).toMatchObject({ enabled: false })
    await call('POST', '/stop')
    expect((await call('POST', '/start')).body.status).toBe('running')
    expect(driver.file(id, 'state/openclaw.json')).not.toContain('bogus')
  })

  test('with refused credentials is deleted again', async () => {
    accounts.discord = () => unauthorized
    expect((await connect('discord', { token: 'MTIz' })).status).toBe(400)
    expect([settingsOf('discord'), await rowOf('discord')]).toEqual([undefined, undefined])
  })

  test('that is prepared is changed without a worker', async () => {
    await connect('discord', { token: 'MTIz' })
    driver.calls.length = 0
    expect((await connect('discord', { token: 'MTIz2' })).status).toBe(200)
    expect(settingsOf('discord')?.token).toBe('MTIz2')
    expect(driver.calls.filter(({ method }) => method === 'prepareChannel')).toEqual([])
  })
})

describe('a channel that is linked by QR code', () => {
  const image = qrImage(scanned)
  beforeEach(() => {
    login = { message: 'Scan this QR.', qrDataUrl: `data:image/png;base64,${image}` }
    gateway.methods['web.login.wait'] = () => ({ connected: false, message: 'Still waiting for the QR scan.' })
  })

  test('returns the code and its text, and its status follows the scan', async () => {
    const answer = { channel: 'whatsapp', status: 'awaiting_scan', qr_data: scanned, qr_image_base64: image }
    expect(await connect('whatsapp')).toMatchObject({ status: 200, body: answer })
    expect(await statusOf('whatsapp')).toMatchObject({
      enabled: true,
      connected: false,
      details: { login: 'awaiting_scan' },
    })
    expect((await call('POST', '/channels/whatsapp/qr')).body).toMatchObject(answer)
    gateway.methods['web.login.wait'] = () => {
      accounts.whatsapp = () => up
      return { connected: true, message: 'Linked!' }
    }
    expect(await statusOf('whatsapp')).toMatchObject({ enabled: true, connected: true })
    login = { message: 'WhatsApp is already linked.' }
    expect((await connect('whatsapp')).body).toMatchObject({ status: 'connected', qr_data: null })
  })

  test('is started once it is linked, because OpenClaw does not start it after unclean ends', async () => {
    login = { connected: true, message: 'WhatsApp recovered the existing linked session (+1).' }
    expect((await connect('whatsapp')).body).toMatchObject({ status: 'connected', qr_data: null })
    expect(callsOf('channels.start')).toEqual([{ method: 'channels.start', params: { channel: 'whatsapp' } }])
  })

  test('is a 502 that quotes the gateway when the platform issues no code', async () => {
    login = { message: 'WhatsApp login failed: ENOTFOUND web.whatsapp.com' }
    expect(await connect('whatsapp')).toMatchObject({
      status: 502,
      body: { detail: { error: expect.stringContaining('ENOTFOUND web.whatsapp.com') } },
    })
  })

  test('does not unpack an image that is far larger than any code, even if the agent sends it', async () => {
    login = { message: 'x'.repeat(100_000), qrDataUrl: login.qrDataUrl }
    expect((await connect('whatsapp')).body.message).toHaveLength(2000)
    const small = Buffer.from(image, 'base64')
    const huge = hugeImage(small)
    const interlaced = Buffer.from(small)
    interlaced[28] = 1 // the checksum is verified later
    for (const png of [huge, interlaced, Buffer.concat([small.subarray(0, headerEnd), huge.subarray(signatureEnd)])]) {
      login = { message: 'Scan this QR.', qrDataUrl: `data:image/png;base64,${png.toString('base64')}` }
      const startedAt = performance.now()
      expect((await connect('whatsapp')).body).toMatchObject({ status: 'awaiting_scan', qr_data: null })
      expect(performance.now() - startedAt).toBeLessThan(10_000)
    }
  })

  test('is logged out at the platform, and deleted', async () => {
    await connect('whatsapp')
    expect((await call('POST', '/channels/whatsapp/logout')).status).toBe(204)
    expect(callsOf('channels.logout')).toHaveLength(1)
    expect(await rowOf('whatsapp')).toBeUndefined()
  })

  test('is the only kind of channel with codes', async () => {
    expect((await call('POST', '/channels/telegram/qr')).status).toBe(400)
    expect((await call('POST', '/channels/whatsapp/qr')).status).toBe(409)
  })
})

describe('pairing', () => {
  beforeEach(async () => {
    await connect('telegram', { token: '1:a' })
    const listed = { requests: [{ id: '777', code: '5GJBEXZ6', meta: { accountId: 'default' } }] }
    driver.onExec = (argv) => (argv.includes('pairing') ? done(JSON.stringify(listed)) : undefined)
  })

  test('lists the pending requests, without the codes', async () => {
    const { status, body } = await call('GET', '/channels/telegram/pairings')
    expect([status, body]).toEqual([
      200,
      [
        {
          sender_id: '777',
          sender: { first_name: 'Ann', user_id: '777', name: 'Ann B' },
          created_at: '2026-11-25T04:03:59.981000+00:00',
          expires_at: '2026-11-25T05:03:59.981000+00:00',
        },
      ],
    ])
    expect(JSON.stringify(body)).not.toContain('5GJBEXZ6')
  })

  test('approves the person with the code, in any case and with dashes', async () => {
    for (const code of ['5GJBEXZ6', '5gjb-exz6']) {
      const { status, body } = await call('POST', '/channels/telegram/pair', { code })
      expect([status, body]).toEqual([
        200,
        { channel: 'telegram', code, status: 'approved', output: 'Pairing approved for user 777.' },
      ])
    }
    expect(callsOf('channels.pairing.approve')[0]?.params).toEqual({
      channel: 'telegram',
      accountId: 'default',
      requestId: 'r-1',
    })
  })

  test('approves also when the path has the id of the instance in capitals', async () => {
    const path = `/v1/instances/${id.toUpperCase()}/channels/telegram/pair`
    expect((await chowder.call('POST', path, { key, body: { code: '5GJBEXZ6' } })).status).toBe(200)
  })

  test('approves nobody for an unknown or malformed code', async () => {
    expect((await call('POST', '/channels/telegram/pair', { code: 'WRONG123' })).status).toBe(400)
    for (const code of ['', '-a-b', '5GJB EXZ6', '$(id)', '--json'])
      expect((await call('POST', '/channels/telegram/pair', { code })).status, code).toBe(422)
    expect(callsOf('channels.pairing.approve')).toEqual([])
  })

  test('is a conflict for a channel that is not connected', async () => {
    for (const path of ['/channels/slack/pair', '/channels/slack/pairings']) {
      const answer = path.endsWith('pair') ? call('POST', path, { code: '5GJBEXZ6' }) : call('GET', path)
      expect((await answer).status).toBe(409)
    }
  })
})

test('a stopped instance lists its channels, disconnects at its next start, and connects none', async () => {
  await connect('telegram', { token: '1:a' })
  await call('POST', '/stop')
  expect(await statusOf('telegram')).toEqual({ channel: 'telegram', enabled: true, connected: false, details: {} })
  for (const [path, body] of [
    ['connect', { config: { token: '1:b' } }],
    ['pair', { code: '5GJBEXZ6' }],
  ] as const) {
    expect((await call('POST', `/channels/telegram/${path}`, body)).status, path).toBe(409)
  }
  expect((await connect('discord', { token: 'a' })).status).toBe(409)
  expect((await call('POST', '/channels/whatsapp/qr')).status).toBe(409)
  expect((await call('POST', '/channels/telegram/disconnect')).status).toBe(204)
  await call('POST', '/start')
  expect(JSON.parse(driver.file(id, 'state/openclaw.json') ?? '').channels.telegram).toMatchObject({
    enabled: false,
    botToken: '1:a',
  })
})
