import { type Static, Type } from '@sinclair/typebox'
import { Budget, NewBudgets } from '#budgets/schemas.ts'
import { type ApprovalMode, approvalModes, isolations, modelProviders, type Instance as Row } from '#database/schema.ts'
import { checkEgress, Egress, NewEgress } from '#egress/schemas.ts'
import { limitFields, limitOf, ResourceChanges } from '#http/resource-fields.ts'
import { shownMessage } from '#instances/failure-message.ts'
import { type ResourceChanges as Changes, mergeResources } from '#instances/resources.ts'
import { sealSettings } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { modelPattern } from '#openclaw/models/model.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Name, Nullable, OneOf, textRule, Uuid, visibleText } from '#platform/typebox.ts'
import { described, field } from './field.ts'
import { Metadata, MetadataChanges, mergeLabels } from './labels.ts'
import { HeldLimits, toLimits } from './limits.ts'
import { exampleId, exampleUrl, GatewayUrl, Status, Step } from './status.ts'

const organizationKey = 'Needs an organization key.'

export const ExternalId = Type.String({
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

const Approvals = OneOf(
  approvalModes,
  'Which commands the agent may run. `auto`: all, at once. `ask`: a person allows or denies each. `off`: none.',
)

const Overrides = Type.Record(Type.String(), Type.Unknown(), {
  description:
    'Settings that differ from Chowder’s configuration of OpenClaw: dot-path keys, nested objects, or both. ' +
    '`agent.system_prompt` sets the system prompt.',
})

const Isolation = OneOf(
  isolations,
  'Where the tools of the agent run. `one_room`: beside its gateway, so that whoever talks to it may have it print its ' +
    'own tokens. `two_rooms`: in a room that holds the workspace alone and has no network.',
)

export const RegionName = Type.String({
  minLength: 1,
  maxLength: 63,
  ...visibleText,
  description: 'Where the agent runs: the name of one of `GET /v1/regions`.',
})

const egressDescription =
  'What the agent may reach beside models; null is what its organization allows, which is `open` by default, and which ' +
  'no instance exceeds. Holds within a second, also for open connections.'
const EgressChange = Type.Optional(Nullable({ ...NewEgress, description: egressDescription }))

const IdleTimeout = Type.Integer({
  minimum: 60,
  maximum: 30 * 24 * 60 * 60,
  description:
    'After how many seconds without a turn or a call of a model the agent sleeps: it is stopped, and started again by ' +
    'the next request or for its own cron. null: it never sleeps. If left out, the default of the operator, else null.',
})
const WakeOnRequest = Type.Boolean({
  description: 'Whether a request starts the agent when it sleeps; otherwise such a request is a 409.',
})

const noLimits = { memory_mb: null, cpus: null, pids: null, disk_mb: null }

/**
 * The fields of an instance. One entry defines all of a field in the API: the bodies of create and PATCH, the answer
 * and its example, the columns that a caller writes, and who may write them.
 */
export const fields = {
  id: field({ answer: Uuid('The id of the instance.'), show: ({ row }) => row.id, example: exampleId }),
  organization_id: field({
    answer: Uuid('The organization that the instance belongs to.'),
    show: ({ row }) => row.organizationId,
    example: 'a1b2c3d4-e5f6-7890-abcd-ef1234567890',
  }),
  name: field({
    answer: Type.String({ description: 'The name for people; two instances may have the same.' }),
    create: described(Name, 'The agent knows it as its own.'),
    patch: Type.Optional(described(Name, 'The agent knows it as its own, within seconds.')),
    columns: (name: string) => ({ name }),
    appliedLater: true,
    show: ({ row }) => row.name,
    example: 'my-assistant',
  }),
  external_id: field({
    answer: Nullable(ExternalId),
    create: Type.Optional(Nullable(ExternalId)),
    patch: Type.Optional(Nullable(described(ExternalId, `null removes it. ${organizationKey}`))),
    columns: (externalId: string | null) => ({ externalId }),
    needsOrganizationKey: 'identity',
    show: ({ row }) => row.externalId,
    example: 'agent-of-cust-42',
  }),
  status: field({ answer: Status, show: ({ status }) => status.status, example: 'running' }),
  step: field({ answer: Step, show: ({ status }) => status.step, example: null }),
  metadata: field({
    answer: Metadata,
    create: Type.Optional(Metadata),
    patch: Type.Optional(Nullable(described(MetadataChanges, organizationKey))),
    initial: {},
    columns: (changes: Static<typeof MetadataChanges> | null, { row }) => ({ metadata: mergeLabels(changes, row) }),
    needsOrganizationKey: 'limit',
    show: ({ row }) => row.metadata,
    example: { customer: 'cust-42' },
  }),
  model: field({
    answer: Nullable(Model),
    create: Type.Optional(Nullable(Model)),
    patch: Type.Optional(Nullable(Model)),
    columns: (model: string | null, { id, vault }) => sealSettings(vault, id, { model }),
    setting: 'model',
    show: ({ settings }) => settings.model,
    example: 'claude-opus-5',
  }),
  instructions: field({
    answer: Nullable(Instructions),
    create: Type.Optional(Nullable(Instructions)),
    patch: Type.Optional(Nullable(Instructions)),
    columns: (instructions: string | null, { id, vault }) => sealSettings(vault, id, { instructions }),
    setting: 'instructions',
    isPrivate: true,
    show: ({ settings }) => settings.instructions,
    example: 'You are a helpful assistant.',
  }),
  approvals: field({
    answer: Approvals,
    create: Type.Optional(Approvals),
    patch: Type.Optional(Approvals),
    initial: 'auto',
    columns: (approvals: ApprovalMode, { id, vault }) => sealSettings(vault, id, { approvals }),
    setting: 'approvals',
    isKept: true,
    show: ({ settings }) => settings.approvals,
    example: 'auto',
  }),
  model_provider: field({
    answer: OneOf(modelProviders, 'The provider of the agent’s models.'),
    create: Type.Optional(
      OneOf(
        modelProviders,
        'The provider of the agent’s models. Your organization must have a key for it. `anthropic` if left out.',
      ),
    ),
    initial: 'anthropic',
    columns: (modelProvider: Row['modelProvider']) => ({ modelProvider }),
    isKept: true,
    show: ({ row }) => row.modelProvider,
    example: 'anthropic',
  }),
  sandbox_provider: field({
    answer: OneOf(['sandbox'], 'How the agent is kept apart.'),
    create: Type.Optional(OneOf(['sandbox'], 'How the agent is kept apart.')),
    show: () => 'sandbox' as const,
    example: 'sandbox',
  }),
  sandbox_id: field({
    answer: Nullable(Type.String({ description: 'The platform’s name for the sandbox; null until there is one.' })),
    show: ({ row }) => row.sandboxId,
    example: 'local-f47ac10b',
  }),
  gateway_url: field({
    answer: GatewayUrl,
    show: ({ status }) => status.gateway_url,
    example: exampleUrl,
  }),
  openclaw_version: field({
    answer: Type.String({ description: 'The OpenClaw release of the agent; `GET /v1/releases` lists all.' }),
    create: Type.Optional(
      Type.String({ maxLength: 64, description: 'The OpenClaw release; the newest known release if left out.' }),
    ),
    show: ({ row }) => row.openclawVersion,
    example: 'v1',
  }),
  openclaw_config: field({
    answer: Type.Unsafe<Record<string, unknown> | null>({
      type: ['object', 'null'],
      additionalProperties: true,
      description: 'The overrides as they were sent.',
    }),
    create: Type.Optional(Nullable(Overrides)),
    patch: Type.Optional(Nullable(described(Overrides, 'Replaces all stored overrides; null removes them.'))),
    columns: (openclawConfig: Record<string, unknown> | null, { id, vault }) =>
      sealSettings(vault, id, { openclawConfig }),
    setting: 'openclawConfig',
    isPrivate: true,
    show: ({ settings }) => settings.openclawConfig,
    example: { 'agents.defaults.thinkingDefault': 'low' },
  }),
  isolation: field({
    answer: Isolation,
    create: Type.Optional(described(Isolation, 'That of the organization if left out.')),
    patch: Type.Optional(described(Isolation, `Restarts an agent that runs otherwise. ${organizationKey}`)),
    needsOrganizationKey: 'limit',
    show: ({ row }) => row.isolation,
    example: 'one_room',
  }),
  region: field({
    answer: Nullable(described(RegionName, 'Null on a server whose operator has named none.')),
    create: Type.Optional(Nullable(described(RegionName, 'The default one if null or left out.'))),
    show: ({ view }) => view.region,
    example: null,
  }),
  resources: field({
    answer: Type.Object(
      limitFields((name) => Nullable(limitOf(name))),
      {
        description:
          'What the agent may use, as far as it is set for this instance; null is what the organization has as ' +
          '`resources`. Never more than its `max_resources`.',
      },
    ),
    create: Type.Optional(ResourceChanges),
    patch: Type.Optional(described(ResourceChanges, organizationKey)),
    columns: (changes: Changes, { row }) => ({ resources: mergeResources(changes, row) }),
    appliedLater: true,
    needsOrganizationKey: 'limit',
    isKept: true,
    show: ({ row }) => ({ ...noLimits, ...row.resources }),
    example: { ...noLimits, memory_mb: 4096 },
  }),
  limits: field({
    answer: HeldLimits,
    show: ({ row }) => row.limits && toLimits(row.limits),
    example: {
      memory_mb: { value: 4096, kept_by: 'kernel' },
      cpus: { value: 2, kept_by: 'kernel' },
      pids: { value: 512, kept_by: 'kernel' },
      disk_mb: { value: 10_240, kept_by: 'watch' },
    },
  }),
  stopped_for: field({
    answer: Nullable(
      OneOf(
        ['disk', 'drain', 'idle'],
        '`disk`: Chowder stopped the agent because its files had reached `disk_mb`. Delete files, or raise the limit, ' +
          'and start it. `drain`: the operator has emptied its region, and starts it again later. `idle`: it sleeps, because ' +
          'nobody had used it for `idle_timeout_seconds`. null otherwise.',
      ),
    ),
    show: ({ row }) => row.stoppedFor,
    example: null,
  }),
  idle_timeout_seconds: field({
    answer: Nullable(IdleTimeout),
    create: Type.Optional(Nullable(IdleTimeout)),
    patch: Type.Optional(Nullable(IdleTimeout)),
    columns: (idleTimeoutSeconds: number | null) => ({ idleTimeoutSeconds }),
    isKept: true,
    show: ({ row }) => row.idleTimeoutSeconds,
    example: null,
  }),
  wake_on_request: field({
    answer: WakeOnRequest,
    create: Type.Optional(WakeOnRequest),
    patch: Type.Optional(WakeOnRequest),
    initial: true,
    columns: (wakeOnRequest: boolean) => ({ wakeOnRequest }),
    isKept: true,
    show: ({ row }) => row.wakeOnRequest,
    example: true,
  }),
  wakes_at: field({
    answer: Nullable(DateTime('When a sleeping agent is started for its own cron; null if that has nothing to do.')),
    show: ({ row }) => row.wakesAt && toMicroseconds(row.wakesAt),
    example: null,
  }),
  egress: field({
    answer: Type.Unsafe<Static<typeof Egress> | null>({
      ...Type.Object(Egress.properties),
      type: ['object', 'null'],
      description: egressDescription,
    }),
    create: EgressChange,
    patch: Type.Optional(
      Nullable({ ...NewEgress, description: `${egressDescription} A scoped key may narrow it, not widen it.` }),
    ),
    columns: (egress: NewEgress | null) => ({ egress: egress && checkEgress(egress) }),
    show: ({ row }) => row.egress,
    example: null,
  }),
  budgets: field({
    answer: Type.Array(Budget, {
      description: 'What models may use for this instance. Budgets of the organization may be for it as well.',
    }),
    create: Type.Optional(NewBudgets),
    patch: Type.Optional(described(NewBudgets, organizationKey)),
    needsOrganizationKey: 'limit',
    show: ({ budgets }) => budgets,
    example: [],
  }),
  error_message: field({
    answer: Nullable(
      Type.String({
        description:
          'Why the status is `error`; null otherwise. What the gateway said last follows, for keys with the permission ' +
          '`configure` only.',
      }),
    ),
    show: ({ row, view }) => (publicStatus(row) === 'error' ? shownMessage(row.errorMessage, view.mayConfigure) : null),
    example: null,
  }),
  created_at: field({
    answer: DateTime('When the instance was created.'),
    show: ({ row }) => toMicroseconds(row.createdAt),
    example: '2026-02-14T16:00:00.000000+00:00',
  }),
  updated_at: field({
    answer: DateTime('When the instance was last changed by a caller, or changed its status.'),
    show: ({ row }) => toMicroseconds(row.updatedAt),
    example: '2026-02-14T16:00:09.000000+00:00',
  }),
}
