import { and, desc, eq, getTableColumns, lt, or, sql } from 'drizzle-orm'
import { readBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import { after } from '#database/page.ts'
import { instances } from '#database/schema.ts'
import { isShownIn, type Regions } from '#instances/regions.ts'
import { isReadable } from '#instances/row.ts'
import { hasStatus, type InstanceStatus, isNotTerminated } from '#instances/status.ts'

export interface InstanceFilter {
  /** Without statuses, all instances that are not terminated. */
  status?: readonly InstanceStatus[]
  /** A part of the name, in upper or lower case. */
  name?: string
  external_id?: string
  region?: string
  /** Required labels with their values. */
  metadata?: Readonly<Record<string, string>>
  limit: number
  /** The id of the last instance of the previous page. */
  position?: string | undefined
}

/** The index does not contain instances without labels. */
const hasLabels = (labels: Readonly<Record<string, string>>) =>
  sql`${instances.metadata} @> ${JSON.stringify(labels)}::jsonb AND ${instances.metadata} <> '{}'`

/** Maximum size of the overrides and instructions in one page: unsealing, parsing and writing them takes some ms. */
const maxSealedBytes = 128 * 1024

const { sealedToken: _, ...shownColumns } = getTableColumns(instances)
const bytes = sql<number>`coalesce(octet_length(${instances.sealedConfig}), 0) +
  coalesce(octet_length(${instances.sealedInstructions}), 0)`

/**
 * Lists instances of an organization with their budgets, newest first, up to the limit or the maximum size of overrides
 * and instructions. Terminated instances are listed only by their status. `next` is the position after the page if more
 * follow. Throws `invalid_value`.
 */
export async function listInstances(db: Db, organizationId: string, filter: InstanceFilter, regions: Regions) {
  const { status, name, external_id: externalId, metadata, region, limit, position } = filter
  const page = db
    .select({ id: instances.id, createdAt: instances.createdAt, bytes: bytes.as('bytes') })
    .from(instances)
    .where(
      and(
        eq(instances.organizationId, organizationId),
        status === undefined ? isNotTerminated : and(or(...status.map((one) => hasStatus[one])), isReadable),
        externalId === undefined ? undefined : eq(instances.externalId, externalId),
        metadata === undefined ? undefined : hasLabels(metadata),
        region === undefined ? undefined : isShownIn(regions.named(region)),
        name === undefined ? undefined : sql`strpos(lower(${instances.name}), lower(${name})) > 0`,
        position === undefined ? undefined : after(instances, organizationId, position),
      ),
    )
    .orderBy(desc(instances.createdAt), desc(instances.id))
    .limit(limit + 1)
    .as('page')
  const sized = db
    .select({
      id: page.id,
      before:
        sql<number>`sum(${page.bytes}) OVER (ORDER BY ${page.createdAt} DESC, ${page.id} DESC) - ${page.bytes}`.as(
          'before',
        ),
      found: sql<number>`(count(*) OVER ())::int`.as('found'),
    })
    .from(page)
    .as('sized')
  const found = await db
    .select({ row: shownColumns, found: sized.found })
    .from(sized)
    .innerJoin(instances, eq(instances.id, sized.id))
    .where(lt(sized.before, maxSealedBytes))
    .orderBy(desc(instances.createdAt), desc(instances.id))
  const rows = found.slice(0, limit).map(({ row }) => row)
  const ids = rows.map(({ id }) => id)
  const budgets = await readBudgets(db, ids)
  return {
    rows: rows.map((row) => ({ row, budgets: budgets.get(row.id) ?? [] })),
    next: (found[0]?.found ?? 0) > rows.length ? ids.at(-1) : undefined,
  }
}
