import { and, desc, eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { egressHosts } from '#database/egress-schema.ts'
import { type EgressPolicy, instances, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { egressTexts } from '#errors/egress-texts.ts'
import { texts } from '#errors/texts.ts'
import { changedBy } from '#history/record.ts'
import { getInstance, isOwnedBy } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { hostAndPort, readHost } from './hosts.ts'
import { defaultPolicy, isWithin, withinCeiling } from './policy.ts'
import { keptHosts } from './records.ts'
import { checkEgress, type NewEgress } from './schemas.ts'

/** How long a host is kept without a request. */
const keptDays = 30
/** Maximum rows per statement. */
const batchSize = 1000

/** In batches; throws the reason of the signal between two. */
async function deleteHosts(db: Db, condition: SQL, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM egress_hosts WHERE (instance_id, host, port) IN (
        SELECT e.instance_id, e.host, e.port FROM egress_hosts e WHERE ${condition} LIMIT ${batchSize})`)
    if ((rowCount ?? 0) < batchSize) return
    signal?.throwIfAborted()
  }
}

/** Deletes hosts without a request in 30 days. */
export const deleteOldEgressHosts = (db: Db, signal?: AbortSignal): Promise<void> =>
  deleteHosts(db, sql`e.last_seen_at < now() - make_interval(days => ${keptDays})`, signal)

/** Deletes the recorded hosts of an organization's agents. */
export const deleteEgressHostsOf = (db: Db, organizationId: string, signal?: AbortSignal): Promise<void> =>
  deleteHosts(db, sql`e.organization_id = ${organizationId}`, signal)

/** A policy, and its owner. */
interface OwnedPolicy {
  policy: EgressPolicy
  owner: 'instance' | 'organization' | 'default'
}

/** The stored policies of an organization and, if it is named, of one of its instances. */
async function policiesOf(db: Db, organizationId: string, instanceId: string | null) {
  const [found] = await db
    .select({ own: instances.egress, ceiling: organizations.egress })
    .from(organizations)
    .leftJoin(
      instances,
      and(
        eq(instances.organizationId, organizations.id),
        instanceId === null ? sql`false` : eq(instances.id, instanceId),
      ),
    )
    .where(eq(organizations.id, organizationId))
  return found ?? { own: null, ceiling: null }
}

async function policyOf(db: Db, organizationId: string, instanceId: string): Promise<OwnedPolicy> {
  const { own, ceiling } = await policiesOf(db, organizationId, instanceId)
  const policy = withinCeiling(own, ceiling)
  if (own && policy !== ceiling) return { policy, owner: 'instance' }
  return { policy, owner: ceiling ? 'organization' : 'default' }
}

function requireCeiling(egress: EgressPolicy, ceiling: EgressPolicy | null): void {
  if (ceiling && !isWithin(egress, ceiling)) {
    throw new AppError('invalid_value', egressTexts.aboveCeiling(ceiling.mode), { param: 'egress' })
  }
}

/**
 * Checks a policy that a caller sets for an instance, or for a new one without an id; null inherits that of the
 * organization. Throws AppError `invalid_value` when it permits more than the organization's, and `lacks_permission`
 * when a scoped key would widen what the agent reaches now.
 */
export async function requireEgress(
  db: Db,
  caller: { organizationId: string; isScoped: boolean },
  instanceId: string | null,
  sent: NewEgress | null,
): Promise<void> {
  const { own, ceiling } = await policiesOf(db, caller.organizationId, instanceId)
  const egress = sent && checkEgress(sent)
  if (egress) requireCeiling(egress, ceiling)
  if (caller.isScoped && !isWithin(egress ?? ceiling ?? defaultPolicy, withinCeiling(own, ceiling))) {
    throw new AppError('lacks_permission', egressTexts.widerOfOrganization, { param: 'egress' })
  }
}

/** The rule that would permit a blocked host, or one that an allow-list would block. */
function allowWithOf({ verdict, reason, host, port }: typeof egressHosts.$inferSelect) {
  if (verdict === 'allowed' || reason === 'mail_port') return null
  const setting = reason === 'private_address' ? ('EGRESS_ALLOWED_HOSTS' as const) : ('egress.hosts' as const)
  return { setting, value: hostAndPort(host, port) }
}

/** The policy of an instance, and the hosts that its agent has requested, the last one first. */
export async function readEgress(db: Db, organizationId: string, instanceId: string) {
  const hosts = await db
    .select()
    .from(egressHosts)
    .where(eq(egressHosts.instanceId, instanceId))
    .orderBy(desc(egressHosts.lastSeenAt), egressHosts.host, egressHosts.port)
    .limit(keptHosts)
  return {
    ...(await policyOf(db, organizationId, instanceId)),
    hosts: hosts.map(({ instanceId: _, organizationId: __, ...row }) => ({
      ...row,
      allowWith: allowWithOf({ ...row, instanceId, organizationId: __ }),
    })),
  }
}

/**
 * Adds a host to the policy of an instance, and creates the policy if it has none. Throws AppError `invalid_value`,
 * `instance_not_found` and `instance_terminated`.
 */
export async function allowHost(
  db: Db,
  organizationId: string,
  id: string,
  { host, port }: { host: string; port?: number },
): Promise<void> {
  await getInstance(db, organizationId, id)
  await db.transaction(async (tx) => {
    const isOwn = and(isOwnedBy(organizationId, id), isNotTerminated)
    const [locked] = await tx.select({ id: instances.id }).from(instances).where(isOwn).for('update')
    if (!locked) throw new AppError('instance_terminated', texts.isTerminated)
    const { own, ceiling } = await policiesOf(tx, organizationId, id)
    const policy = withinCeiling(own, ceiling)
    const written = readHost(host) ?? host
    const entry = port === undefined ? written : hostAndPort(written, port)
    const mode = policy.mode === 'none' ? 'allowlist' : policy.mode
    const egress = checkEgress({ mode, hosts: [...policy.hosts, entry] })
    requireCeiling(egress, ceiling)
    await tx.update(instances).set({ egress, updatedAt: sql`now()`, changedBy: changedBy() }).where(isOwn)
  })
}
