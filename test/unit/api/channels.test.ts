import { expect, test } from 'vitest'
import { channelNames, getChannelDefinition } from '#api/channels/catalogue.ts'
import { mergeSettings } from '#api/channels/settings.ts'
import { channelPlugin, channelPluginFolder, needsPlugin, pluginChannels } from '#openclaw/release/channel-plugins.ts'

test('the release locks a plugin for every channel but Telegram, and no other plugin', () => {
  const others = channelNames.filter((channel) => channel !== 'telegram')
  expect(pluginChannels('v1')).toEqual(others.toSorted())
  expect(needsPlugin('v1', 'telegram')).toBe(false)
  for (const channel of others) {
    expect(channelPlugin('v1', channel)).toMatchObject({
      packageName: `@openclaw/${channel}`,
      version: expect.stringMatching(/^2026\.9\.[56]$/),
    })
  }
})

test('the folder of a plugin is beside its release, and its name changes with its lock file', () => {
  expect(channelPluginFolder('/data/releases/v1-0123456789ab', 'v1', 'discord')).toMatch(
    /^\/data\/releases\/v1-0123456789ab-discord-[0-9a-f]{12}$/,
  )
})

test.each([
  ['telegram', { token: 'a' }, { botToken: 'a', dmPolicy: 'pairing' }],
  ['discord', { token: 'a' }, { token: 'a', dmPolicy: 'pairing' }],
  [
    'slack',
    { bot_token: 'xoxb-a', app_token: 'xapp-a' },
    { mode: 'socket', botToken: 'xoxb-a', appToken: 'xapp-a', dmPolicy: 'pairing' },
  ],
  ['whatsapp', {}, { dmPolicy: 'pairing' }],
  [
    'googlechat',
    { audience_type: 'app-url', audience: 'https://a' },
    { audienceType: 'app-url', audience: 'https://a', dmPolicy: 'pairing' },
  ],
  ['signal', { account: '+15551234567' }, { account: '+15551234567', dmPolicy: 'pairing' }],
  [
    'matrix',
    { homeserver: 'https://a', user_id: '@b:a', access_token: 'c' },
    { homeserver: 'https://a', userId: '@b:a', accessToken: 'c', dm: { policy: 'pairing' } },
  ],
  [
    'msteams',
    { app_id: 'a', app_password: 'b', tenant_id: 'c' },
    { appId: 'a', appPassword: 'b', tenantId: 'c', dmPolicy: 'pairing' },
  ],
  [
    'mattermost',
    { bot_token: 'a', base_url: 'https://b' },
    { botToken: 'a', baseUrl: 'https://b', dmPolicy: 'pairing' },
  ],
  ['nostr', {}, { privateKey: expect.stringMatching(/^[0-9a-f]{64}$/), dmPolicy: 'pairing' }],
  [
    'line',
    { channel_access_token: 'a', channel_secret: 'b' },
    { channelAccessToken: 'a', channelSecret: 'b', dmPolicy: 'pairing' },
  ],
])('the documented fields of %s are stored by OpenClaw’s names', (channel, given, settings) => {
  expect(mergeSettings(channel, given, null)).toEqual(settings)
  expect(Object.keys(getChannelDefinition(channel).fields).every((name) => name in given)).toBe(true)
})

test('the stored settings have a limit, also when they grow in small steps', () => {
  const part = (name: string) => ({ [name]: 'x'.repeat(60_000) })
  const stored = mergeSettings('nostr', { relays: ['wss://a'], ...part('a'), ...part('b') }, null)
  expect(() => mergeSettings('nostr', part('c'), stored)).toThrow(/128|131072/)
  expect(mergeSettings('nostr', { ...part('c'), a: null }, stored)).toMatchObject(part('c'))
})

test('a config is merged into the stored settings, null removes a key, and a generated key stays', () => {
  const stored = mergeSettings('nostr', { relays: ['wss://a'] }, null)
  expect(mergeSettings('nostr', {}, stored)).toEqual(stored)
  expect(mergeSettings('nostr', { relays: null, dmPolicy: 'open' }, stored)).toEqual({
    privateKey: stored.privateKey,
    dmPolicy: 'open',
  })
})
