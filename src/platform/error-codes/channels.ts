import { codesOf } from './kinds.ts'

/** Of chat channels. */
export const channelCodes = {
  ...codesOf('invalid', {
    invalid_channel_config: {
      meaning: '`config` of the channel has a key that it must not have, or is too large or too deep.',
      remedy: '`detail` names the rule. `GET …/channels/{channel}` describes each field.',
    },
    missing_channel_fields: {
      meaning: '`config` lacks something that the channel needs.',
      remedy: 'Add the fields that `detail` names. `GET …/channels/{channel}` describes each.',
    },
    channel_refused: {
      meaning: 'The chat platform refused the credentials, or OpenClaw the settings. Nothing was stored.',
      remedy: '`detail` has the reason. Correct the credentials.',
      repeat: 'After you have corrected them.',
    },
    channel_has_no_qr_code: {
      meaning: 'The channel connects with credentials, not with a QR code.',
      remedy: 'Connect it: `POST …/channels/{channel}/connect`.',
    },
    unknown_pairing_code: {
      meaning: 'No pending request has this pairing code. It was mistyped, was used, or is older than an hour.',
      remedy: 'Ask the person to write to the agent again, which sends a new code.',
    },
  }),
  ...codesOf('not_found', {
    channel_not_found: {
      meaning: 'There is no channel of this name.',
      remedy: 'Take the name from `GET …/channels`.',
    },
  }),
  ...codesOf('conflict', {
    channel_not_connected: {
      meaning: 'The channel is not connected.',
      remedy: 'Connect it first: `POST …/channels/{channel}/connect`.',
      repeat: 'After the channel is connected.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    channel_unreachable: {
      meaning: 'The chat platform could not be reached, or did not answer in time.',
      remedy: '`detail` has the reason. Wait a moment.',
      repeat: 'Yes.',
    },
  }),
  ...codesOf('unavailable', {
    channel_not_prepared: {
      meaning: 'The plugin of the channel could not be installed on this host.',
      remedy: '`detail` has the reason. If it lasts, ask the operator of this server.',
      repeat: 'Yes.',
    },
  }),
}
