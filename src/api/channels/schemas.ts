import { type Static, Type } from '@sinclair/typebox'
import { texts } from '#errors/texts.ts'
import { namedExamples } from '#http/examples.ts'
import { DateTime, Nullable, OneOf, textRule } from '#platform/typebox.ts'
import type { Connection } from './connect.ts'
import type { PairingRequest } from './pairing.ts'
import type { ChannelStatus as Status } from './status.ts'

const ChannelName = Type.String({ description: 'The channel, as in the path.' })
const ConnectionType = OneOf(['token', 'interactive'], 'How it connects: with credentials, or by a QR code.')

export const Channel = Type.Object(
  {
    channel: ChannelName,
    connection_type: ConnectionType,
    enabled: Type.Boolean({ description: 'Whether the channel is enabled on the instance.' }),
  },
  { $id: 'Channel', examples: [{ channel: 'discord', connection_type: 'token', enabled: true }] },
)

export const ChannelInfo = Type.Object(
  {
    channel: ChannelName,
    connection_type: ConnectionType,
    required_fields: Type.Record(Type.String(), Type.String(), {
      description: 'The fields that `config` must have, each with a description for people.',
    }),
  },
  {
    $id: 'ChannelInfo',
    examples: [
      {
        channel: 'discord',
        connection_type: 'token',
        required_fields: { token: 'Your Discord bot token from the Developer Portal.' },
      },
    ],
  },
)

const Issue = Type.Object({
  message: Type.String({ description: 'What is wrong.' }),
  fix: Type.Optional(Type.String({ description: 'How OpenClaw proposes to fix it.' })),
})

export const ChannelStatus = Type.Object(
  {
    channel: ChannelName,
    enabled: Type.Boolean({ description: 'Whether the channel is enabled on the instance.' }),
    connected: Type.Boolean({ description: 'Whether both the gateway and the platform report it as connected.' }),
    details: Type.Object(
      {
        step: Type.Optional(Type.String({ description: 'The step of the preparation that is under way.' })),
        error: Type.Optional(Type.String({ description: 'Why it is not connected.' })),
        configured: Type.Optional(
          Type.Boolean({ description: 'Whether OpenClaw has all settings that the channel needs.' }),
        ),
        running: Type.Optional(Type.Boolean({ description: 'Whether OpenClaw runs the channel.' })),
        account: Type.Optional(Type.String({ description: 'The name of the bot on the platform.' })),
        login: Type.Optional(
          OneOf(['connected', 'awaiting_scan', 'ended'], 'The state of the scan of the last QR code.'),
        ),
        message: Type.Optional(Type.String({ description: 'OpenClaw’s message about the login.' })),
        issues: Type.Optional(Type.Array(Issue, { description: 'Problems that OpenClaw finds in the settings.' })),
      },
      { description: 'Fields that are not known are absent.' },
    ),
  },
  {
    $id: 'ChannelStatus',
    examples: [
      {
        channel: 'telegram',
        enabled: true,
        connected: true,
        details: { configured: true, running: true, account: 'acme_support_bot', issues: [] },
      },
    ],
  },
)

export const ConnectChannel = Type.Object(
  {
    config: Type.Optional(
      Nullable(
        Type.Record(Type.String(), Type.Unknown(), {
          description:
            'The required fields of the channel, and any of OpenClaw’s own settings for it. A key that is absent ' +
            'keeps its stored value; null removes a key.',
        }),
      ),
    ),
  },
  {
    additionalProperties: false,
    ...namedExamples({
      telegram: { config: { token: '110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw' } },
      slack: { config: { bot_token: 'xoxb-…', app_token: 'xapp-…' } },
      'whatsapp, by a QR code': { config: {} },
      'telegram, for two people': {
        config: {
          token: '110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw',
          dmPolicy: 'allowlist',
          allowFrom: ['123456789', '987654321'],
        },
      },
    }),
  },
)

const connected = { channel: 'telegram', status: 'connected', qr_data: null, qr_image_base64: null, message: null }
export const awaitingScan = {
  channel: 'whatsapp',
  status: 'awaiting_scan' as const,
  qr_data: '2@Zk9xT1…',
  qr_image_base64: 'iVBORw0KGgo…',
  message: 'Scan this QR in WhatsApp → Linked Devices.',
}
export const preparing = {
  ...{ channel: 'whatsapp', status: 'preparing' as const, qr_data: null, qr_image_base64: null },
  message: texts.channelPreparing,
}

export const ChannelConnection = Type.Object(
  {
    channel: ChannelName,
    status: OneOf(
      ['connected', 'awaiting_scan', 'preparing'],
      '`awaiting_scan`: show the QR code to the user. `preparing`: the channel is being installed, ask its status.',
    ),
    qr_data: Nullable(Type.String({ description: 'The text of the QR code, for clients that draw it themselves.' })),
    qr_image_base64: Nullable(Type.String({ description: 'The QR code as a PNG, in base64.' })),
    message: Nullable(Type.String({ description: 'The next thing to do, for people; null when there is none.' })),
  },
  {
    $id: 'ChannelConnection',
    ...namedExamples({ connected, 'QR code': awaitingScan }),
  },
)

export const PairChannel = Type.Object(
  {
    code: Type.String({
      minLength: 4,
      maxLength: 32,
      ...textRule('^[A-Za-z0-9][A-Za-z0-9-]*$', 'must have only letters, digits and dashes'),
      description: 'The code that the person received; case and dashes do not matter.',
    }),
  },
  { additionalProperties: false, examples: [{ code: '5GJBEXZ6' }] },
)

export const ChannelPairing = Type.Object(
  {
    channel: ChannelName,
    code: Type.String({ description: 'The code of the request.' }),
    status: OneOf(['approved'], 'The outcome.'),
    output: Nullable(Type.String({ description: 'The outcome, for people.' })),
  },
  {
    $id: 'ChannelPairing',
    examples: [
      { channel: 'telegram', code: '5GJBEXZ6', status: 'approved', output: 'Pairing approved for user 123456789.' },
    ],
  },
)

export const PendingPairing = Type.Object(
  {
    sender_id: Type.String({ description: 'The person’s id on the platform.' }),
    sender: Type.Record(Type.String(), Type.Unknown(), { description: 'The platform’s data about the person.' }),
    created_at: DateTime('When the person asked.'),
    expires_at: DateTime('When the code expires.'),
  },
  {
    $id: 'PendingPairing',
    examples: [
      {
        sender_id: '123456789',
        sender: { first_name: 'Ann' },
        created_at: '2026-11-25T04:03:59.981000+00:00',
        expires_at: '2026-11-25T05:03:59.981000+00:00',
      },
    ],
  },
)

export const toConnection = (channel: string, connection: Connection): Static<typeof ChannelConnection> => ({
  channel,
  status: connection.status,
  qr_data: connection.qr?.data ?? null,
  qr_image_base64: connection.qr?.image ?? null,
  message: connection.message,
})

export function toChannelStatus(status: Status): Static<typeof ChannelStatus> {
  const { channel, enabled, step, gateway, login } = status
  const error = status.error ?? gateway?.error
  return {
    channel,
    enabled,
    connected: enabled && gateway?.connected === true,
    details: {
      ...(step !== null && { step }),
      ...(error != null && { error }),
      ...(gateway && { configured: gateway.configured, running: gateway.running, issues: gateway.issues }),
      ...(gateway?.account != null && { account: gateway.account }),
      ...(login && { login: login.state }),
      ...(login?.message != null && { message: login.message }),
    },
  }
}

export const toPendingPairing = (request: PairingRequest): Static<typeof PendingPairing> => ({
  sender_id: request.senderId,
  sender: request.sender,
  created_at: request.createdAt,
  expires_at: request.expiresAt,
})
