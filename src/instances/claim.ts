import { and, getTableColumns, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { requestOfIntent } from '#history/find-intent.ts'
import { type TakenInstance, takeLease } from './lease.ts'
import { isInAny, type Region } from './regions.ts'
import { isDue, isDueNow } from './status.ts'

/** Upper bounds per claim: organizations and oldest rows examined. */
const mostOrganizations = 256
const mostRows = 256
/** Alternative rows of the best organizations, for those that other workers claim at the same moment. */
const mostCandidates = 16
/** Rows that one statement postpones, those that have waited longest first. */
const mostPostponed = 1000

/** The rows that a worker may claim. */
export interface ClaimScope {
  regions: readonly Region[]
  /** The organization of the previous claim: the next turn starts after it. */
  afterOrganization: string
  /** Organizations whose rows are left to other workers. */
  exceptOrganizations: readonly string[]
}

/** The lowest id. */
export const firstId = '00000000-0000-0000-0000-000000000000'

/** The first columns of the index of claims. */
export interface Place {
  driver: string
  /** Empty for rows without a region. */
  region: string
}

/** The region of a row as in the index of claims. */
export const placeOf = sql`coalesce(${instances.region}, '')`

/**
 * Whether a row has the driver and the region of a joined place. The equalities make PostgreSQL use the index of
 * claims.
 */
export const isPlacedAt = (place: SQL): SQL =>
  sql`${instances.sandboxDriver} = ${place}.driver AND ${placeOf} = ${place}.region`

const placesOf = (regions: readonly Region[]): Place[] =>
  regions.flatMap(({ sandboxes: { name: driver }, region, hasUnnamed }) => [
    { driver, region },
    ...(hasUnnamed ? [{ driver, region: '' }] : []),
  ])

export const isPlaceIn = (regions: readonly Region[], { driver, region }: Place): boolean =>
  placesOf(regions).some((place) => place.driver === driver && place.region === region)

/**
 * Selects the row to claim, and locks it. Walks over the organizations with due rows by the index of claims, one probe
 * for each place, starting after the last claim. It ends at the first organization with a claimable row and no lease,
 * so it passes only organizations with leases, which are at most as many as all workers' capacity. If it finds none, it
 * examines the organizations of the oldest rows: the organizations that it passed may have only rows with a later next
 * attempt.
 */
function nextRow({ regions, afterOrganization, exceptOrganizations }: ClaimScope) {
  const { organizationId, leaseUntil, nextAttemptAt, id } = instances
  const places = placesOf(regions)
  const texts = (values: string[]) => sql`${sql.param(values)}::text[]`
  const scope = sql`unnest(${texts(places.map(({ driver }) => driver))}, ${texts(places.map(({ region }) => region))})
    AS place(driver, region)`
  const isHere = isPlacedAt(sql`place`)
  const except = sql`${sql.param([...exceptOrganizations])}::uuid[]`
  const after = sql`${afterOrganization}::uuid`
  const firstOrganization = (condition: SQL) => sql`
    SELECT first.organization_id FROM ${scope} CROSS JOIN LATERAL (
      SELECT organization_id FROM ${instances} WHERE ${isHere} AND ${isDue} AND ${condition}
      ORDER BY ${organizationId} LIMIT 1
    ) first ORDER BY 1 LIMIT 1`
  const oldestRow = (organization: SQL, lock: SQL) => sql`
    SELECT oldest.id FROM ${scope} CROSS JOIN LATERAL (
      SELECT ${id}, ${nextAttemptAt} FROM ${instances}
      WHERE ${isHere} AND ${isDueNow} AND ${organizationId} = ${organization}
      ORDER BY ${nextAttemptAt} LIMIT 1 ${lock}
    ) oldest ORDER BY oldest.next_attempt_at LIMIT 1`
  return sql`
    WITH RECURSIVE held AS MATERIALIZED (
      SELECT organization_id, count(*) AS leases FROM ${instances}
      WHERE ${isDue} AND ${leaseUntil} > now() GROUP BY organization_id
    ), walk AS (
      SELECT 0 AS passed, ${after} AS organization_id, false AS is_second_round, NULL::bigint AS leases
      UNION ALL
      SELECT walk.passed + 1, next.organization_id, next.is_second_round,
        CASE WHEN next.organization_id <> ALL (${except})
          AND (${oldestRow(sql`next.organization_id`, sql``)}) IS NOT NULL
        THEN coalesce((SELECT leases FROM held WHERE held.organization_id = next.organization_id), 0) END
      FROM walk CROSS JOIN LATERAL (
        SELECT found.organization_id, walk.is_second_round
        FROM (${firstOrganization(sql`${organizationId} > walk.organization_id`)}) found
        UNION ALL
        SELECT found.organization_id, true
        FROM (${firstOrganization(sql`NOT walk.is_second_round`)}) found
        LIMIT 1
      ) next
      WHERE walk.leases IS DISTINCT FROM 0 AND walk.passed < ${mostOrganizations}
        AND NOT (next.is_second_round AND next.organization_id > ${after})
    ), candidates AS (
      SELECT organization_id, leases, passed FROM walk WHERE leases IS NOT NULL
      UNION ALL
      SELECT organization_id, 0, 0 FROM (
        SELECT organization_id FROM ${instances} WHERE ${and(isInAny(regions), isDueNow)}
        ORDER BY ${nextAttemptAt} LIMIT ${mostRows}
      ) oldest
      WHERE organization_id <> ALL (${except}) AND NOT EXISTS (SELECT FROM walk WHERE leases IS NOT NULL)
    )
    SELECT due.id
    FROM (SELECT organization_id FROM candidates ORDER BY leases, passed LIMIT ${mostCandidates}) organization
    CROSS JOIN LATERAL (${oldestRow(sql`organization.organization_id`, sql`FOR UPDATE SKIP LOCKED`)}) due
    LIMIT 1`
}

/**
 * Claims the next due row for a worker and counts the attempt, in one statement, so that a killed worker has used an
 * attempt. Organizations with the fewest leases come first and take turns; within one, the row that has waited longest.
 * The cost depends on the leases of workers, not on the number of due rows. Null when no row in these regions is due,
 * free and past its next attempt.
 */
export async function claimDue(db: Db, scope: ClaimScope): Promise<TakenInstance | null> {
  const [row] = await db
    .update(instances)
    .set({ ...takeLease, attempts: sql`${instances.attempts} + 1` })
    .where(sql`${instances.id} = (${nextRow(scope)})`)
    .returning({ ...getTableColumns(instances), requestId: requestOfIntent })
  return row ?? null
}

/**
 * Postpones the due rows of a region by 10 to 20 s, at random so that they spread out, and shows `step` meanwhile. The
 * reason of an earlier failure is kept: the row may be given up.
 */
export async function postponeDue(db: Db, region: Region, step: string, reason: string): Promise<void> {
  const { id, errorMessage, nextAttemptAt } = instances
  const due = sql`SELECT ${id} FROM ${instances} WHERE ${and(isInAny([region]), isDueNow)}
    ORDER BY ${nextAttemptAt} LIMIT ${mostPostponed} FOR UPDATE SKIP LOCKED`
  await db
    .update(instances)
    .set({
      step,
      errorMessage: sql`coalesce(${errorMessage}, ${reason})`,
      nextAttemptAt: sql`now() + make_interval(secs => 10 + 10 * random())`,
    })
    .where(sql`${id} IN (${due})`)
}
