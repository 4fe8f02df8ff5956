import { Type } from '@sinclair/typebox'
import { isolations } from '#database/schema.ts'
import { modelPattern } from '#openclaw/model.ts'
import { OneOf, plainText, textRule, visibleText } from '#platform/typebox.ts'
import { maxLabels } from './patch.ts'

// The fields that callers set, and answers repeat.

export const overridesDescription =
  'Settings that differ from Chowder’s configuration of OpenClaw: dot-path keys, nested objects, or both. ' +
  '`agent.system_prompt` sets the system prompt.'
export const Overrides = Type.Record(Type.String(), Type.Unknown())

export const ExternalId = Type.String({
  minLength: 1,
  maxLength: 128,
  ...visibleText,
  description:
    'Your own id of the instance: 1 to 128 visible ASCII characters. Two instances of your organization have the ' +
    'same one only if one of them is terminated: a delete frees it.',
})

export const Isolation = OneOf(
  isolations,
  'Where the tools of the agent run. `one_room`: beside its gateway, so that whoever talks to it may have it print its ' +
    'own tokens. `two_rooms`: in a room that holds the workspace alone and has no network.',
)

export const Model = Type.String({
  maxLength: 200,
  ...textRule(modelPattern, 'must be the name of a model: at most 200 letters, digits and . _ : @ / + -'),
  description:
    'The model of the agent, one of its provider, such as `claude-opus-5`. null is the default of the provider, ' +
    'unless `openclaw_config` sets `agents.defaults.model`.',
})
export const Instructions = Type.String({
  minLength: 1,
  maxLength: 100_000,
  description:
    'How the agent is to behave, in all sessions: its system prompt. null is none, unless `openclaw_config` sets ' +
    '`agent.system_prompt`.',
})

export const labels = {
  type: 'object',
  maxProperties: maxLabels,
  propertyNames: { minLength: 1, maxLength: 64, ...plainText },
} as const
export const label = { type: 'string', maxLength: 512, ...plainText } as const

export const Metadata = Type.Unsafe<Record<string, string>>({
  ...labels,
  additionalProperties: label,
  description:
    'Your own labels: at most 16 keys of 1 to 64 characters, with values of at most 512 characters. Chowder does not ' +
    'interpret them.',
})

export const egressDescription =
  'What the agent may reach beside models; null is what its organization allows, which is `open` by default. Holds ' +
  'within a second, also for open connections.'

export const RegionName = Type.String({
  minLength: 1,
  maxLength: 63,
  ...visibleText,
  description: 'Where the agent runs: the name of one of `GET /v1/regions`.',
})
