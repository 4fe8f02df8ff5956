import { randomBytes } from 'node:crypto'
import { mergePatch } from '#openclaw/json.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

type Settings = Record<string, unknown>

interface Entry {
  /** What people call it. */
  title: string
  type: 'token' | 'interactive'
  /** What must be given, by the documented name: OpenClaw's key for it, and what a person is told. */
  fields: Readonly<Record<string, { key: string; description: string }>>
  /** What stands in OpenClaw's settings unless the caller says otherwise. */
  defaults: Settings
  /** Settings that are made up once and then kept. */
  generate?(): Settings
}

/** Strangers get a code first, which the operator approves. */
const pairing = { dmPolicy: 'pairing' }

const catalogue: Readonly<Record<string, Entry>> = {
  telegram: {
    title: 'Telegram',
    type: 'token',
    fields: { token: { key: 'botToken', description: 'Your Telegram bot token from @BotFather.' } },
    defaults: pairing,
  },
  discord: {
    title: 'Discord',
    type: 'token',
    fields: { token: { key: 'token', description: 'Your Discord bot token from the Developer Portal.' } },
    defaults: pairing,
  },
  slack: {
    title: 'Slack',
    type: 'token',
    fields: {
      bot_token: { key: 'botToken', description: 'The bot token of your Slack app, which begins with xoxb-.' },
      app_token: {
        key: 'appToken',
        description: 'The app-level token of your Slack app with connections:write, which begins with xapp-.',
      },
    },
    defaults: { ...pairing, mode: 'socket' },
  },
  whatsapp: { title: 'WhatsApp', type: 'interactive', fields: {}, defaults: pairing },
  googlechat: {
    title: 'Google Chat',
    type: 'token',
    fields: {
      audience_type: { key: 'audienceType', description: 'How Google signs its calls: app-url or project-number.' },
      audience: { key: 'audience', description: 'The address of your app, or the number of its project.' },
    },
    defaults: pairing,
  },
  signal: {
    title: 'Signal',
    type: 'token',
    fields: { account: { key: 'account', description: 'The phone number of the account, as in +15551234567.' } },
    defaults: pairing,
  },
  matrix: {
    title: 'Matrix',
    type: 'token',
    fields: {
      homeserver: { key: 'homeserver', description: 'The address of your homeserver, as in https://matrix.org.' },
      user_id: { key: 'userId', description: "The bot's user id, as in @bot:matrix.org." },
      access_token: { key: 'accessToken', description: "The bot's access token." },
    },
    defaults: { dm: { policy: 'pairing' } },
  },
  msteams: {
    title: 'MS Teams',
    type: 'token',
    fields: {
      app_id: { key: 'appId', description: 'The application id of your Azure bot.' },
      app_password: { key: 'appPassword', description: 'A client secret of your Azure bot.' },
      tenant_id: { key: 'tenantId', description: 'The id of the directory that your Azure bot belongs to.' },
    },
    defaults: pairing,
  },
  mattermost: {
    title: 'Mattermost',
    type: 'token',
    fields: {
      bot_token: { key: 'botToken', description: "Your bot account's access token." },
      base_url: { key: 'baseUrl', description: 'The address of your Mattermost server.' },
    },
    defaults: pairing,
  },
  nostr: {
    title: 'Nostr',
    type: 'token',
    fields: {},
    defaults: pairing,
    generate: () => ({ privateKey: randomBytes(32).toString('hex') }),
  },
  line: {
    title: 'LINE',
    type: 'token',
    fields: {
      channel_access_token: { key: 'channelAccessToken', description: 'The long-lived channel access token.' },
      channel_secret: { key: 'channelSecret', description: 'The channel secret.' },
    },
    defaults: pairing,
  },
}

const maxDepth = 16
const maxValues = 1000
/** Of all settings of a channel: every look at the instance reads them. */
const maxCharacters = 128 * 1024
const maxFieldLength = 4096
/** The first three reach JavaScript's prototypes; the gateway reads the file, or runs the program, that the others name. */
const poisonous = new Set([
  '__proto__',
  'constructor',
  'prototype',
  '$include',
  'cliPath',
  'tokenFile',
  'secretFile',
  'serviceAccountFile',
  'certificatePath',
  'configPath',
  'authDir',
  'trustedLocalFileRoots',
])

/** Every channel that there is, in the documented order. */
export const knownChannels: readonly string[] = Object.keys(catalogue)

/** Throws not_found for a channel that there is not. */
export function channelEntry(channel: string): Entry {
  const entry = Object.hasOwn(catalogue, channel) ? catalogue[channel] : undefined
  if (!entry) throw new AppError('not_found', texts.unknownChannel)
  return entry
}

/** Refuses what cannot be settings of a channel; a loop, because nesting may be of any depth. */
function check(given: Settings): void {
  if (Object.hasOwn(given, 'enabled')) {
    throw new AppError('invalid', 'config.enabled cannot be set: connect switches the channel on, disconnect off.')
  }
  const open: { value: unknown; depth: number }[] = [{ value: given, depth: 0 }]
  for (let count = 0, next = open.pop(); next; next = open.pop(), count += 1) {
    const { value, depth } = next
    if (depth > maxDepth) throw new AppError('invalid', `config is nested deeper than ${maxDepth} levels.`)
    if (count > maxValues) throw new AppError('invalid', `config has more than ${maxValues} values.`)
    if (typeof value !== 'object' || value === null) continue
    for (const [key, inner] of Object.entries(value)) {
      if (poisonous.has(key)) throw new AppError('invalid', `config cannot have a key ${key}.`)
      open.push({ value: inner, depth: depth + 1 })
    }
  }
}

const isFilled = (value: unknown) => typeof value === 'string' && value.trim() !== '' && value.length <= maxFieldLength

/**
 * What stands under `channels.<channel>` once a caller's `config` is taken in: on top of what is stored, which may
 * already hold the credentials. Documented names are translated, OpenClaw's own are taken as they are, null removes.
 * Throws invalid, naming the fields that are missing.
 */
export function settingsFrom(channel: string, given: Settings, stored: Settings | null): Settings {
  const { fields, defaults, generate } = channelEntry(channel)
  check(given)
  const translated = Object.fromEntries(
    Object.entries(given).map(([name, value]) => [Object.hasOwn(fields, name) ? fields[name]!.key : name, value]),
  )
  const before = stored ?? { ...defaults, ...generate?.() }
  const settings = mergePatch(before, translated) as Settings
  if (JSON.stringify(settings).length > maxCharacters)
    throw new AppError(
      'invalid',
      `config comes to more than ${maxCharacters} characters with what is stored. Remove some of that with null.`,
    )
  const missing = Object.keys(fields).filter((name) => !isFilled(settings[fields[name]!.key]))
  if (missing.length > 0) throw new AppError('invalid', texts.missingChannelFields(channel, missing))
  return settings
}
