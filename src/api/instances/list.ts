import { and, desc, eq, or, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { after, cutPage } from '#database/page.ts'
import { instances } from '#database/schema.ts'
import { isReadable } from '#instances/row.ts'
import { hasStatus, type InstanceStatus, isNotTerminated } from '#instances/status.ts'

export interface InstanceFilter {
  /** Without statuses, all instances that are not terminated. */
  status?: readonly InstanceStatus[]
  /** A part of the name, in upper or lower case. */
  name?: string
  external_id?: string
  /** The labels that an instance must have, with these values. */
  metadata?: Readonly<Record<string, string>>
  limit?: number
  /** The id of the last instance of the page before. */
  position?: string | undefined
}

/** The index has no instances without labels. */
const hasLabels = (labels: Readonly<Record<string, string>>) =>
  sql`${instances.metadata} @> ${JSON.stringify(labels)}::jsonb AND ${instances.metadata} <> '{}'`

/**
 * Lists an organization's instances, newest first. Terminated instances are listed only by their status. `next` is the
 * position of the page after this one.
 */
export async function listInstances(db: Db, organizationId: string, filter: InstanceFilter) {
  const { status, name, external_id: externalId, metadata, limit, position } = filter
  const query = db
    .select()
    .from(instances)
    .where(
      and(
        eq(instances.organizationId, organizationId),
        status === undefined ? isNotTerminated : and(or(...status.map((one) => hasStatus[one])), isReadable),
        externalId === undefined ? undefined : eq(instances.externalId, externalId),
        metadata === undefined ? undefined : hasLabels(metadata),
        name === undefined ? undefined : sql`strpos(lower(${instances.name}), lower(${name})) > 0`,
        position === undefined ? undefined : after(instances, organizationId, position),
      ),
    )
    .orderBy(desc(instances.createdAt), desc(instances.id))
  return cutPage(limit === undefined ? await query : await query.limit(limit + 1), limit)
}
