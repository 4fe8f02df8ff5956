import { and, eq, inArray, isNotNull, type SQL, sql } from 'drizzle-orm'
import type { PgColumn } from 'drizzle-orm/pg-core'
import type { Db } from '#database/client.ts'
import { type Event, events } from '#database/schema.ts'
import type { EventType } from '#history/event-types.ts'
import { settledId } from '#history/settled.ts'

export interface EventQuery {
  organizationId: string
  instanceId?: string | undefined
  requestId?: string | undefined
  types?: readonly EventType[] | undefined
  order: 'asc' | 'desc'
  /** Only events with larger ids. */
  after?: number | undefined
  /** The id of the last event of the previous page. */
  position?: number | undefined
  limit: number
}

/**
 * Lists events of an organization by their ids. In ascending order an event is listed once all smaller ids are
 * committed: a reader that continues after the last one misses none. In descending order all are listed. `next` is the
 * id of the last event if more follow. The cost does not depend on the number of events.
 */
export async function listEvents(db: Db, query: EventQuery): Promise<{ rows: Event[]; next: number | undefined }> {
  const { organizationId, instanceId, requestId, types, order, after = 0, position, limit } = query
  const isAscending = order === 'asc'
  const low = isAscending ? Math.max(after, position ?? 0) : after
  const high = isAscending ? (await settledId(db)) + 1 : (position ?? Number.MAX_SAFE_INTEGER)
  const direction = sql.raw(order)
  const atMost = limit + 1

  /**
   * The page of the events whose columns have these values. Compares and sorts by all columns of an index: for an
   * equation with an order by id, the planner may choose another index and read all events to find a few.
   */
  function page(columns: readonly PgColumn[], values: readonly unknown[]) {
    const key = sql.join([...columns, events.id], sql`, `)
    const bound = (id: number) => sql.join([...values.map((value) => sql`${value}`), sql`${id}`], sql`, `)
    return {
      isInside: sql`(${key}) > (${bound(low)}) AND (${key}) < (${bound(high)})`,
      inOrder: sql.join(
        [...columns, events.id].map((column) => sql`${column} ${direction}`),
        sql`, `,
      ),
    }
  }

  const [ownerColumn, owner] =
    instanceId === undefined ? [events.organizationId, organizationId] : [events.instanceId, instanceId]

  function pageOfTypes(wanted: readonly EventType[]): SQL {
    const { isInside, inOrder } = page([ownerColumn, events.type], [owner, sql`wanted.type`])
    return sql`${events.id} = ANY (ARRAY(
      SELECT found.id FROM unnest(${sql.param(wanted)}::text[]) AS wanted (type) CROSS JOIN LATERAL (
        SELECT ${events.id} FROM ${events} WHERE ${isInside} ORDER BY ${inOrder} LIMIT ${atMost}
      ) AS found ORDER BY found.id ${direction} LIMIT ${atMost}))`
  }

  async function read(isListed: SQL | undefined, inOrder: SQL): Promise<Event[]> {
    return db.select().from(events).where(isListed).orderBy(inOrder).limit(atMost)
  }

  async function find(): Promise<Event[]> {
    const isOfOrganization = eq(events.organizationId, organizationId)
    if (requestId !== undefined) {
      const { isInside, inOrder } = page([events.organizationId, events.requestId], [organizationId, requestId])
      const isOfInstance = instanceId === undefined ? undefined : eq(events.instanceId, instanceId)
      const isOfType = types && inArray(events.type, [...types])
      return read(and(isInside, isNotNull(events.requestId), isOfInstance, isOfType), inOrder)
    }
    if (types) return read(and(pageOfTypes(types), isOfOrganization), sql`${events.id} ${direction}`)
    const { isInside, inOrder } = page([ownerColumn], [owner])
    return read(and(isInside, instanceId === undefined ? undefined : isOfOrganization), inOrder)
  }

  const found = await find()
  const rows = found.slice(0, limit)
  return { rows, next: found.length > limit ? rows.at(-1)?.id : undefined }
}
