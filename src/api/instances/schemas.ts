import { type Static, Type } from '@sinclair/typebox'
import { modelProviders, type Instance as Row } from '#database/schema.ts'
import { PageQuery } from '#http/paging.ts'
import { DateTime, Name, Nullable, OneOf, plainText, textRule, Uri, Uuid, visibleText } from '#http/validation.ts'
import type { AgentSettings } from '#instances/agent-settings.ts'
import type { InstanceSummary } from '#instances/find.ts'
import { instanceStatuses, isSettled, publicStatus, waitTargets } from '#instances/status.ts'
import { modelPattern } from '#openclaw/model.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { maxLabels } from './patch.ts'

const overridesDescription =
  'Settings that differ from Chowder’s configuration of OpenClaw: dot-path keys, nested objects, or both. ' +
  '`agent.system_prompt` sets the system prompt.'
const Overrides = Type.Record(Type.String(), Type.Unknown())

const ExternalId = Type.String({
  minLength: 1,
  maxLength: 128,
  ...visibleText,
  description:
    'Your own id of the instance: 1 to 128 visible ASCII characters. Two instances of your organization have the ' +
    'same one only if one of them is terminated: a delete frees it.',
})

const Model = Type.String({
  maxLength: 200,
  ...textRule(modelPattern, 'must be the name of a model: at most 200 letters, digits and . _ : @ / + -'),
  description:
    'The model of the agent, one of its provider, such as `claude-opus-5`. null is the default of the provider, ' +
    'unless `openclaw_config` sets `agents.defaults.model`.',
})
const Instructions = Type.String({
  minLength: 1,
  maxLength: 100_000,
  description:
    'How the agent is to behave, in all sessions: its system prompt. null is none, unless `openclaw_config` sets ' +
    '`agent.system_prompt`.',
})

const labels = {
  type: 'object',
  maxProperties: maxLabels,
  propertyNames: { minLength: 1, maxLength: 64, ...plainText },
} as const
const label = { type: 'string', maxLength: 512, ...plainText } as const

const Metadata = Type.Unsafe<Record<string, string>>({
  ...labels,
  additionalProperties: label,
  description:
    'Your own labels: at most 16 keys of 1 to 64 characters, with values of at most 512 characters. Chowder does not ' +
    'interpret them.',
})

const exampleId = 'f47ac10b-58cc-4372-a567-0e02b2c3d479'
const exampleUrl = `https://chowder.example.com/v1/instances/${exampleId}`

const Status = {
  ...OneOf(
    instanceStatuses,
    '`provisioning`: a worker prepares the agent. `running`: it takes messages. `stopped`: it was stopped, its files ' +
      'and its memory are kept. `error`: it could not be started, `error_message` says why, and a start tries again. ' +
      '`terminated`: it was deleted.',
  ),
  $id: 'Status',
}

const Step = Nullable(
  Type.String({
    description:
      'The step that Chowder is carrying out for the instance; `waiting for a worker` while none runs; null when there ' +
      'is nothing to do.',
  }),
)
const GatewayUrl = Nullable(
  Uri('The base URL for an OpenAI client; null until it has run, in `error` and `terminated`.'),
)

export const Instance = Type.Object(
  {
    id: Uuid('The id of the instance.'),
    organization_id: Uuid('The organization that the instance belongs to.'),
    name: Type.String({ description: 'The name for people; two instances may have the same.' }),
    external_id: Nullable(ExternalId),
    status: Status,
    step: Step,
    metadata: Metadata,
    model: Nullable(Model),
    instructions: Nullable(Instructions),
    model_provider: OneOf(modelProviders, 'The provider of the agent’s models.'),
    sandbox_provider: OneOf(['sandbox'], 'How the agent is kept apart.'),
    sandbox_id: Nullable(Type.String({ description: 'The platform’s name for the sandbox; null until there is one.' })),
    gateway_url: GatewayUrl,
    openclaw_version: Type.String({ description: 'The OpenClaw release of the agent; `GET /v1/releases` lists all.' }),
    openclaw_config: Type.Unsafe<Record<string, unknown> | null>({
      type: ['object', 'null'],
      additionalProperties: true,
      description: 'The overrides as they were sent.',
    }),
    region: Type.Null({ description: 'Null: a server has one region, its own.' }),
    error_message: Nullable(Type.String({ description: 'Why the status is `error`; null otherwise.' })),
    created_at: DateTime('When the instance was created.'),
    updated_at: DateTime('When the instance was last changed by a caller, or changed its status.'),
  },
  {
    $id: 'Instance',
    examples: [
      {
        id: exampleId,
        organization_id: 'a1b2c3d4-e5f6-7890-abcd-ef1234567890',
        name: 'my-assistant',
        external_id: 'agent-of-cust-42',
        status: 'running',
        step: null,
        metadata: { customer: 'cust-42' },
        model: 'claude-opus-5',
        instructions: 'You are a helpful assistant.',
        model_provider: 'anthropic',
        sandbox_provider: 'sandbox',
        sandbox_id: 'local-f47ac10b',
        gateway_url: exampleUrl,
        openclaw_version: 'v1',
        openclaw_config: { 'agents.defaults.thinkingDefault': 'low' },
        region: null,
        error_message: null,
        created_at: '2026-02-14T16:00:00.000000+00:00',
        updated_at: '2026-02-14T16:00:09.000000+00:00',
      },
    ],
  },
)

export const CreateInstance = Type.Object(
  {
    name: Name,
    external_id: Type.Optional(Nullable(ExternalId)),
    if_exists: Type.Optional(
      OneOf(
        ['error', 'return'],
        'What to do when an instance has the `external_id` already: `error` answers 409 with its id, `return` ' +
          'answers 200 with the instance as it is, whatever the other fields say. `error` if left out.',
      ),
    ),
    metadata: Type.Optional(Metadata),
    model_provider: Type.Optional(
      OneOf(
        modelProviders,
        'The provider of the agent’s models. Your organization must have a key for it. `anthropic` if left out.',
      ),
    ),
    sandbox_provider: Type.Optional(OneOf(['sandbox'], 'How the agent is kept apart.')),
    model: Type.Optional(Nullable(Model)),
    instructions: Type.Optional(Nullable(Instructions)),
    openclaw_version: Type.Optional(
      Type.String({ maxLength: 64, description: 'The OpenClaw release; the newest known release if left out.' }),
    ),
    openclaw_config: Type.Optional(Nullable({ ...Overrides, description: overridesDescription })),
    region: Type.Optional(Type.Null({ 'x-rule': 'must be null or left out: a server has one region, its own' })),
  },
  {
    additionalProperties: false,
    examples: [{ name: 'my-assistant', model_provider: 'anthropic', metadata: { customer: 'cust-42' } }],
  },
)

export const PatchInstance = Type.Object(
  {
    name: Type.Optional(Name),
    external_id: Type.Optional(
      Nullable({ ...ExternalId, description: `${ExternalId.description} null removes it. Needs an organization key.` }),
    ),
    metadata: Type.Optional(
      Nullable(
        Type.Unsafe<Record<string, string | null>>({
          ...labels,
          additionalProperties: { ...label, type: ['string', 'null'] },
          description:
            'Your own labels. Sets the keys that are sent, removes those that are null, and keeps the others; null ' +
            'removes all. At most 16 remain.',
        }),
      ),
    ),
    model: Type.Optional(Nullable(Model)),
    instructions: Type.Optional(Nullable(Instructions)),
    openclaw_config: Type.Optional(
      Nullable({
        ...Overrides,
        description: `${overridesDescription} Replaces all stored overrides; null removes them.`,
      }),
    ),
  },
  {
    additionalProperties: false,
    examples: [
      {
        name: 'my-assistant-v2',
        openclaw_config: { agent: { system_prompt: 'You are a helpful coding assistant.' } },
      },
    ],
  },
)

export const ListInstances = Type.Object(
  {
    ...PageQuery.properties,
    status: Type.Optional(
      Type.Array(OneOf(instanceStatuses), {
        minItems: 1,
        maxItems: instanceStatuses.length,
        description:
          'Only instances with this status, or with one of several: `status=running&status=error`. Terminated ' +
          'instances are listed only by this, for 30 days.',
      }),
    ),
    external_id: Type.Optional({ ...ExternalId, description: 'Only the instance with this external id.' }),
    metadata: Type.Optional({
      ...Metadata,
      minProperties: 1,
      description: 'Only instances with these labels: `metadata[customer]=cust-42`. Several must all match.',
    }),
    name: Type.Optional({
      ...Name,
      description: 'Only instances with this text in their name, in upper or lower case.',
    }),
  },
  { additionalProperties: false },
)

/** For calls that answer at once unless the caller wants to wait. */
export const WaitQuery = Type.Object(
  {
    wait: Type.Integer({
      minimum: 0,
      maximum: 60,
      default: 0,
      description:
        'How many seconds to wait at most until the agent runs, or cannot; `status` in the response tells which.',
    }),
  },
  { additionalProperties: false },
)

export const WaitForStatus = Type.Object(
  {
    wait: Type.Optional(
      OneOf(
        waitTargets,
        'Respond only once the instance has this status and the work for it is done, or once it cannot reach the ' +
          'status without another call; at the latest after `timeout` seconds. `settled`: once no work is left, ' +
          'whatever the status.',
      ),
    ),
    timeout: Type.Integer({
      minimum: 0,
      maximum: 60,
      default: 60,
      description: 'The longest time to wait, in seconds.',
    }),
  },
  { additionalProperties: false },
)

export const InstanceStatus = Type.Object(
  {
    id: Uuid('The id of the instance.'),
    status: Status,
    step: Step,
    gateway_url: GatewayUrl,
  },
  {
    $id: 'InstanceStatus',
    examples: [{ id: exampleId, status: 'running', step: null, gateway_url: exampleUrl }],
  },
)

/** What an answer about an instance depends on beside its row. */
export interface View {
  publicUrl: string
  /** Whether no worker has been seen lately: then nobody works on a row that is due, whatever its step was. */
  areWorkersMissing: boolean
}

const waitingForWorker = 'waiting for a worker'

/** The instance's base URL for clients. It never changes; the gateway's own endpoint stays private. */
const gatewayUrl = (row: InstanceSummary, publicUrl: string): string | null =>
  row.endpoint && !['error', 'terminated'].includes(publicStatus(row)) ? `${publicUrl}/v1/instances/${row.id}` : null

export const toInstanceStatus = (
  row: InstanceSummary,
  { publicUrl, areWorkersMissing }: View,
): Static<typeof InstanceStatus> => ({
  id: row.id,
  status: publicStatus(row),
  step: areWorkersMissing && !isSettled(row) ? waitingForWorker : row.step,
  gateway_url: gatewayUrl(row, publicUrl),
})

/**
 * Converts a row to the API's format: the only place that does, so that a new column stays private until added here.
 */
export const toInstance = (
  row: Row,
  { model, instructions, openclawConfig }: AgentSettings,
  view: View,
): Static<typeof Instance> => ({
  ...toInstanceStatus(row, view),
  organization_id: row.organizationId,
  name: row.name,
  external_id: row.externalId,
  metadata: row.metadata,
  model,
  instructions,
  model_provider: row.modelProvider,
  sandbox_provider: 'sandbox',
  sandbox_id: row.sandboxId,
  openclaw_version: row.openclawVersion,
  openclaw_config: openclawConfig,
  region: null,
  error_message: publicStatus(row) === 'error' ? row.errorMessage : null,
  created_at: toMicroseconds(row.createdAt),
  updated_at: toMicroseconds(row.updatedAt),
})
