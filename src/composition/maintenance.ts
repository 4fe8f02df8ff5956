import { approvalLink } from '#api/approvals/link.ts'
import { toEvent } from '#api/events/schemas.ts'
import { deleteRevokedKeys } from '#api/keys/retention.ts'
import { eraseDeleted } from '#api/organization/delete.ts'
import { deleteExpiredResponses } from '#api/responses/store/expiry.ts'
import type { Billing } from '#api/subscription/stripe.ts'
import { syncSubscriptions } from '#api/subscription/sync.ts'
import { createDeliveries } from '#api/webhooks/deliver.ts'
import { deleteOldDeliveries } from '#api/webhooks/queue.ts'
import { deleteOldPeriods } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import { deleteOldCalls, settleLostCalls } from '#database/model-calls.ts'
import type { Event } from '#database/schema.ts'
import { deleteSurplus } from '#database/surplus.ts'
import { createCheckedAgent } from '#egress/checked-agent.ts'
import type { HostRule } from '#egress/hosts.ts'
import { createResolve, type Resolve } from '#egress/reach.ts'
import { deleteOldEgressHosts } from '#egress/store.ts'
import { deleteOldEvents } from '#history/retention.ts'
import { clearExpiredAnswers } from '#http/idempotency.ts'
import { eraseTerminated } from '#instances/erase.ts'
import { createFindSummary, createRunningGateways } from '#instances/find.ts'
import { createAskGateway } from '#instances/gateway/ask.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import { applySuspensions } from '#instances/suspension.ts'
import type { Logger } from '#platform/log.ts'
import type { PeriodicTask } from '#platform/periodic.ts'
import type { Vault } from '#platform/secrets.ts'
import { createEphemeralSessionCleanup } from '#turns/ephemeral-sessions.ts'
import { deleteStaleLines } from '#turns/line.ts'

/** The pauses between runs, in ms. */
export interface MaintenanceIntervals {
  /** Delay until instances follow a suspension of an organization, its end, or a changed provider key. */
  suspendMs: number
  /** For data that its owner has deleted. */
  eraseMs: number
  billingMs: number
  /** For data that has reached its age. */
  expireMs: number
  /** For the oldest data of organizations that store too much. */
  surplusMs: number
  /** For events that webhooks get. */
  deliverMs: number
}

export const defaultMaintenance: MaintenanceIntervals = {
  suspendMs: 2000,
  eraseMs: 5000,
  billingMs: 10_000,
  expireMs: 60_000,
  surplusMs: 24 * 60 * 60_000,
  deliverMs: 500,
}

/** For work over many organizations or rows. The next run continues where an aborted run ended. */
const longMs = 10 * 60_000
const shortMs = 60_000

export interface MaintenanceParts {
  db: Db
  vault: Vault
  queue: InstanceQueue
  billing: Billing | null
  /** The hosts that webhooks may have although they are not public. */
  operatorHosts?: readonly HostRule[]
  /** The URL for clients; empty if this process does not know it. */
  publicUrl?(): string
  /** Resolves the names of webhooks. */
  resolve?: Resolve
  log: Logger
}

/** The periodic work of a worker beside reconciling. src/lifecycle/README.md lists it. */
export function maintenanceTasks(
  {
    db,
    vault,
    queue,
    billing,
    operatorHosts = [],
    publicUrl = () => '',
    resolve = createResolve(),
    log,
  }: MaintenanceParts,
  { suspendMs, eraseMs, billingMs, expireMs, surplusMs, deliverMs }: MaintenanceIntervals,
): PeriodicTask[] {
  const askGateway = createAskGateway(createRunningGateways(db, vault, createFindSummary(db)).find, { db, vault })
  const deleteEphemeralSessions = createEphemeralSessionCleanup(db, askGateway, log)
  const agent = createCheckedAgent(resolve, operatorHosts)
  const showEvent = (event: Event) => ({ ...toEvent(event, true), ...approvalLink(vault, publicUrl(), event) })
  const deliver = createDeliveries({ db, vault, agent, showEvent, log })
  const tasks: PeriodicTask[] = [
    {
      name: 'apply_suspensions',
      everyMs: suspendMs,
      timeoutMs: longMs,
      run: (signal) => applySuspensions({ db, queue }, signal),
    },
    {
      name: 'erase_deleted_organizations',
      everyMs: eraseMs,
      timeoutMs: longMs,
      run: (signal) => eraseDeleted(db, log, signal),
    },
    { name: 'delete_ephemeral_sessions', everyMs: eraseMs, timeoutMs: shortMs, run: deleteEphemeralSessions },
    { name: 'deliver_webhooks', everyMs: deliverMs, timeoutMs: shortMs, run: deliver },
    { name: 'delete_expired', everyMs: expireMs, timeoutMs: longMs, run: (signal) => deleteExpired(db, signal) },
    { name: 'delete_surplus', everyMs: surplusMs, timeoutMs: longMs, run: (signal) => deleteSurplus(db, signal) },
    { name: 'settle_lost_calls', everyMs: expireMs, timeoutMs: shortMs, run: () => settleLostCalls(db) },
  ]
  if (!billing) return tasks
  return [
    ...tasks,
    {
      name: 'sync_subscriptions',
      everyMs: billingMs,
      timeoutMs: longMs,
      run: (signal) => syncSubscriptions({ db, billing, log }, signal),
    },
  ]
}

/** Runs the deletions side by side: one that fails or is slow holds up no other. Throws their errors together. */
async function deleteExpired(db: Db, signal: AbortSignal): Promise<void> {
  const ends = await Promise.allSettled([
    eraseTerminated(db, signal),
    clearExpiredAnswers(db, signal),
    deleteOldEvents(db, signal),
    deleteOldDeliveries(db, signal),
    deleteOldCalls(db, signal),
    deleteOldPeriods(db),
    deleteOldEgressHosts(db, signal),
    deleteRevokedKeys(db, signal),
    deleteExpiredResponses(db, signal),
    deleteStaleLines(db),
  ])
  const errors = ends.flatMap((end) => (end.status === 'rejected' ? [end.reason] : []))
  if (errors.length > 0) throw new AggregateError(errors, 'some expired rows could not be deleted')
}
