import { randomBytes } from 'node:crypto'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { closestWord } from '#platform/closest.ts'

/** The settings of a channel, by OpenClaw's names. */
export type Settings = Record<string, unknown>

export interface ChannelDefinition {
  /** The name that people know the channel by. */
  title: string
  type: 'token' | 'interactive'
  /** The required fields by their documented names, each with OpenClaw's name and a description for people. */
  fields: Readonly<Record<string, { key: string; description: string }>>
  /** Default values; the caller may replace them. */
  defaults: Settings
  /** Generates settings at the first connect; they are stored like the others. */
  generate?(): Settings
}

/** New people receive a code, which the operator approves. */
const pairing = { dmPolicy: 'pairing' }

const catalogue: Readonly<Record<string, ChannelDefinition>> = {
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

/** The names of all channels, in the documented order. */
export const channelNames: readonly string[] = Object.keys(catalogue)

/** Throws not_found for an unknown channel. */
export function getChannelDefinition(channel: string): ChannelDefinition {
  const definition = Object.hasOwn(catalogue, channel) ? catalogue[channel] : undefined
  if (!definition) {
    const hint = texts.knownChannels(closestWord(channel, channelNames), channelNames)
    throw new AppError('not_found', texts.unknownChannel, { hint })
  }
  return definition
}
