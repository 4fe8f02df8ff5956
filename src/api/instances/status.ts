import { type Static, Type } from '@sinclair/typebox'
import type { InstanceSummary } from '#instances/find.ts'
import { instanceStatuses, isSettled, publicStatus, shownStep } from '#instances/status.ts'
import { Nullable, OneOf, Uri, Uuid } from '#platform/typebox.ts'

export const exampleId = 'f47ac10b-58cc-4372-a567-0e02b2c3d479'
export const exampleUrl = `https://chowder.example.com/v1/instances/${exampleId}`

export const Status = {
  ...OneOf(
    instanceStatuses,
    '`provisioning`: a worker prepares the agent. `running`: it takes messages. `stopped`: it was stopped, its files ' +
      'and its memory are kept. `error`: it could not be started, `error_message` says why, and a start tries again. ' +
      '`terminated`: it was deleted.',
  ),
  $id: 'Status',
}

export const Step = Nullable(
  Type.String({
    description:
      'The step that Chowder is carrying out for the instance; `waiting for a worker` while none runs; `waiting for the ' +
      'platform` while that of its region is away; `busy` while the agent runs and works without answering; `asleep` ' +
      'while it is stopped because it was idle; null when there is nothing to do.',
  }),
)

export const GatewayUrl = Nullable(
  Uri('The base URL for an OpenAI client; null until it has run, in `error` and `terminated`.'),
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

/** The state, beside its row, that an answer about an instance depends on. */
export interface View {
  publicUrl: string
  /** No worker is alive, so no due row is being worked on, whatever its step was. */
  areWorkersMissing: boolean
  /** The region of the row as shown to callers. */
  region: string | null
  /** The caller may read private fields and the output of the gateway. */
  mayConfigure: boolean
}

const waitingForWorker = 'waiting for a worker'

/** The instance's base URL for clients. It never changes; the gateway's own endpoint stays private. */
const gatewayUrl = (row: Omit<InstanceSummary, 'sealedToken'>, publicUrl: string): string | null =>
  row.endpoint && !['error', 'terminated'].includes(publicStatus(row)) ? `${publicUrl}/v1/instances/${row.id}` : null

export const toInstanceStatus = (
  row: Omit<InstanceSummary, 'sealedToken'>,
  { publicUrl, areWorkersMissing }: Pick<View, 'publicUrl' | 'areWorkersMissing'>,
): Static<typeof InstanceStatus> => ({
  id: row.id,
  status: publicStatus(row),
  step: areWorkersMissing && !isSettled(row) ? waitingForWorker : shownStep(row),
  gateway_url: gatewayUrl(row, publicUrl),
})
