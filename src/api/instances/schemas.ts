import { type Static, Type } from '@sinclair/typebox'
import { Budget, type ShownBudget } from '#budgets/schemas.ts'
import { modelProviders, type Instance as Row } from '#database/schema.ts'
import { Egress } from '#egress/schemas.ts'
import { limitFields, limitOf } from '#http/resource-fields.ts'
import type { AgentSettings } from '#instances/agent-settings.ts'
import { shownMessage } from '#instances/failure-message.ts'
import type { InstanceSummary } from '#instances/find.ts'
import { instanceStatuses, isSettled, publicStatus, shownStep } from '#instances/status.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, Uri, Uuid } from '#platform/typebox.ts'
import type { HeldLimits, ResourceName } from '#settings/resources.ts'
import { exampleId, exampleInstance, exampleUrl } from './examples.ts'
import { ExternalId, egressDescription, Instructions, Isolation, Metadata, Model, RegionName } from './fields.ts'

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
      'The step that Chowder is carrying out for the instance; `waiting for a worker` while none runs; `waiting for the ' +
      'platform` while that of its region is away; `busy` while the agent runs and works without answering; ' +
      'null when there is nothing to do.',
  }),
)
const GatewayUrl = Nullable(
  Uri('The base URL for an OpenAI client; null until it has run, in `error` and `terminated`.'),
)

const heldLimitOf = (name: ResourceName) =>
  Type.Object(
    {
      value: Type.Number({ description: 'The number that holds now.' }),
      kept_by: OneOf(
        ['kernel', 'watch', 'nothing'],
        '`kernel`: the agent cannot exceed it. `watch`: Chowder measures it every 30 seconds, and stops an agent that ' +
          'exceeds it. `nothing`: this server cannot limit it.',
      ),
    },
    { description: `${limitOf(name).description ?? ''}` },
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
    isolation: Isolation,
    region: Nullable({
      ...RegionName,
      description: `${RegionName.description} Null on a server whose operator has named none.`,
    }),
    resources: Type.Object(
      limitFields((name) => Nullable(limitOf(name))),
      {
        description:
          'What the agent may use, as far as it is set for this instance; null is what the organization has as ' +
          '`resources`. Never more than its `max_resources`.',
      },
    ),
    limits: Nullable(
      Type.Object(limitFields(heldLimitOf), {
        description: 'The limits that hold now; null before the first start.',
      }),
    ),
    stopped_for: Nullable(
      OneOf(
        ['disk', 'drain'],
        '`disk`: Chowder stopped the agent because its files had reached `disk_mb`. Delete files, or raise the limit, ' +
          'and start it. `drain`: the operator has emptied its region, and starts it again later. null otherwise.',
      ),
    ),
    egress: Type.Unsafe<Static<typeof Egress> | null>({
      ...Type.Object(Egress.properties),
      type: ['object', 'null'],
      description: egressDescription,
    }),
    budgets: Type.Array(Budget, {
      description: 'What models may use for this instance. Budgets of the organization may be for it as well.',
    }),
    error_message: Nullable(
      Type.String({
        description:
          'Why the status is `error`; null otherwise. What the gateway said last follows, for keys with the permission ' +
          '`configure` only.',
      }),
    ),
    created_at: DateTime('When the instance was created.'),
    updated_at: DateTime('When the instance was last changed by a caller, or changed its status.'),
  },
  {
    $id: 'Instance',
    examples: [exampleInstance],
  },
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
  /** The region of the row as callers see it. */
  region: string | null
  /** Whether the caller may read what the gateway said. */
  mayConfigure: boolean
}

const waitingForWorker = 'waiting for a worker'

/** The instance's base URL for clients. It never changes; the gateway's own endpoint stays private. */
const gatewayUrl = (row: Omit<InstanceSummary, 'sealedToken'>, publicUrl: string): string | null =>
  row.endpoint && !['error', 'terminated'].includes(publicStatus(row)) ? `${publicUrl}/v1/instances/${row.id}` : null

export const toInstanceStatus = (
  row: Omit<InstanceSummary, 'sealedToken'>,
  { publicUrl, areWorkersMissing }: Omit<View, 'mayConfigure' | 'region'>,
): Static<typeof InstanceStatus> => ({
  id: row.id,
  status: publicStatus(row),
  step: areWorkersMissing && !isSettled(row) ? waitingForWorker : shownStep(row),
  gateway_url: gatewayUrl(row, publicUrl),
})

const noLimits = { memory_mb: null, cpus: null, pids: null, disk_mb: null }

/** Chowder watches the limit of the disk. It does not keep one of the others that the kernel does not keep. */
const toLimits = ({ asked, kept }: HeldLimits): Static<typeof Instance>['limits'] => {
  const held = (name: keyof HeldLimits['kept'], otherwise: 'watch' | 'nothing') => {
    const value = kept[name] ?? null
    return value === null ? { value: asked[name], kept_by: otherwise } : { value, kept_by: 'kernel' as const }
  }
  return {
    memory_mb: held('memory_mb', 'nothing'),
    cpus: held('cpus', 'nothing'),
    pids: held('pids', 'nothing'),
    disk_mb: held('disk_mb', 'watch'),
  }
}

/**
 * Converts a row to the API's format: the only place that does, so that a new column stays private until added here.
 */
export const toInstance = (
  row: Omit<Row, 'sealedToken'>,
  { model, instructions, openclawConfig }: AgentSettings,
  budgets: ShownBudget[],
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
  isolation: row.isolation,
  openclaw_config: openclawConfig,
  region: view.region,
  resources: { ...noLimits, ...row.resources },
  limits: row.limits && toLimits(row.limits),
  stopped_for: row.stoppedFor,
  egress: row.egress,
  budgets,
  error_message: publicStatus(row) === 'error' ? shownMessage(row.errorMessage, view.mayConfigure) : null,
  created_at: toMicroseconds(row.createdAt),
  updated_at: toMicroseconds(row.updatedAt),
})
