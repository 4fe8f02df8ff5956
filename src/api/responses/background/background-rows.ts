import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { createResponseRows, type EndedResponse, requestContext } from '#api/responses/store/response-rows.ts'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import { isProcessAlive } from '#database/processes.ts'
import type { ResponseStatus } from '#database/response-schema.ts'
import { recordEvent } from '#history/record.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { BackgroundRequest } from './background-request.ts'

/** A background turn that this process has claimed. */
export interface ClaimedTurn {
  /** The id of its row. */
  id: string
  organizationId: string
  instanceId: string
  sessionKey: string
  status: ResponseStatus
  sealedRequest: string
  /** The time since its row was written and, for one that was, since it was sent, in ms by the clock of the database. */
  ageMs: number
  sentMsAgo: number | null
}

/** Events of a response, as JSON, from number `sequence` on. */
export interface EventBatch {
  sequence: number
  events: string[]
}

const eventsContext = (uuid: string, sequence: number): Place => `response_events/${uuid}.${sequence}/sealed_events`

/** Oldest first. A cancelled turn is claimed too: its run must be ended. */
const claimQuery = `
  UPDATE responses r SET process_id = $1 FROM (
    SELECT id FROM responses WHERE sealed_request IS NOT NULL
      AND (process_id IS NULL OR NOT ${isProcessAlive('responses.process_id')})
    ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED) AS free
  WHERE r.id = free.id
  RETURNING r.id, r.organization_id AS "organizationId", r.instance_id AS "instanceId", r.session_key AS "sessionKey",
    r.status, r.sealed_request AS "sealedRequest", 
    extract(epoch FROM now() - r.created_at)::float8 * 1000 AS "ageMs",
    extract(epoch FROM now() - r.sent_at)::float8 * 1000 AS "sentMsAgo"`

const isOurs = 'id = $1 AND process_id = $2 AND sealed_request IS NOT NULL'

const insertEvents = `
  INSERT INTO response_events (response_id, sequence, sealed_events) VALUES ($1, $2, $3)
  ON CONFLICT DO NOTHING`

/** The object says in_progress from now on: without `sent_at` the one before would read queued again. */
const correctQuery = `
  UPDATE responses SET sealed_request = $3, sent_at = NULL,
    sealed_object = CASE WHEN sealed_object IS NOT NULL THEN $4 END
  WHERE ${isOurs} AND status = 'in_progress'`

const objectQuery = `
  UPDATE responses SET sealed_object = $3
  WHERE ${isOurs} AND status = 'in_progress' AND sealed_object IS NOT NULL`

const endQuery = `
  UPDATE responses SET status = CASE status WHEN 'cancelled' THEN 'cancelled' ELSE $3 END,
    sealed_object = CASE WHEN sealed_object IS NOT NULL THEN $4 END,
    item_ids = ARRAY(SELECT jsonb_array_elements_text($5::jsonb)),
    call_ids = ARRAY(SELECT jsonb_array_elements_text($6::jsonb)), sealed_request = NULL
  WHERE ${isOurs}
  RETURNING status, organization_id AS "organizationId", instance_id AS "instanceId"`

interface EndedRow {
  status: Exclude<ResponseStatus, 'in_progress'>
  organizationId: string
  instanceId: string
}

const readQuery = `
  SELECT e.response_id AS id, e.sequence, e.sealed_events AS sealed
  FROM unnest($1::uuid[], $2::int[]) AS x (id, after)
  JOIN response_events e ON e.response_id = x.id AND e.sequence > x.after ORDER BY e.sequence`

/** The rows of background turns and of their events. `processId` is the id of this process in the table `processes`. */
export function createBackgroundRows(db: Db, vault: Vault, processId: string) {
  const responseRows = createResponseRows(db, vault, processId)
  const unsealEvents = (uuid: string, sequence: number, sealed: string): EventBatch => ({
    sequence,
    events: JSON.parse(vault.unseal(sealed, eventsContext(uuid, sequence))),
  })
  async function append(into: Pick<Db, '$client'>, id: string, { sequence, events }: EventBatch): Promise<boolean> {
    const sealed = vault.seal(JSON.stringify(events), eventsContext(id, sequence))
    const { rowCount } = await into.$client.query(insertEvents, [id, sequence, sealed])
    return rowCount === 1
  }

  return {
    /** Takes over up to `limit` turns that no living process runs. */
    async claim(limit: number): Promise<ClaimedTurn[]> {
      const { rows } = await db.$client.query<ClaimedTurn>(claimQuery, [processId, limit])
      return rows.sort((one, other) => (one.id < other.id ? -1 : 1))
    },
    unsealRequest: ({ id, sealedRequest }: ClaimedTurn): BackgroundRequest =>
      JSON.parse(vault.unseal(sealedRequest, requestContext(id))),
    /** Those of these turns that were cancelled, or are of another process now. */
    async findEnded(ids: readonly string[]): Promise<{ id: string; isOurs: boolean }[]> {
      const { rows } = await db.$client.query<{ id: string; isOurs: boolean }>(
        `SELECT x.id, coalesce(r.process_id = $2, false) AS "isOurs" FROM unnest($1::uuid[]) AS x (id)
         LEFT JOIN responses r ON r.id = x.id AND r.sealed_request IS NOT NULL
         WHERE r.status = 'cancelled' OR r.process_id IS DISTINCT FROM $2`,
        [ids, processId],
      )
      return rows
    },
    /** Records that a turn is sent now. Returns false when it was cancelled, or is of another process. */
    async recordSending(id: string): Promise<boolean> {
      const { rowCount } = await db.$client.query(
        `UPDATE responses SET sent_at = now() WHERE ${isOurs} AND sent_at IS NULL AND status = 'in_progress'`,
        [id, processId],
      )
      return rowCount === 1
    },
    /**
     * Puts the request of a correction, which is not sent yet then, in the place of that of its turn: one statement, so
     * that the next process knows which run to read. Returns false when it was cancelled, or is of another process.
     */
    async recordCorrection(id: string, request: BackgroundRequest, response: ResponseObject): Promise<boolean> {
      const [, , object] = responseRows.toEnd({ response, json: JSON.stringify(response) })
      const { rowCount } = await db.$client.query(correctQuery, [
        id,
        processId,
        vault.seal(JSON.stringify(request), requestContext(id)),
        object,
      ])
      return rowCount === 1
    },
    /** Stores what clients read of a turn that runs. */
    async recordObject(id: string, response: ResponseObject): Promise<void> {
      const [, , object] = responseRows.toEnd({ response, json: JSON.stringify(response) })
      await db.$client.query(objectQuery, [id, processId, object])
    },
    /** Adds events. Returns false when another process has written some with this number. */
    append: (id: string, batch: EventBatch) => append(db, id, batch),
    /** Stores the last events and the end of a turn, and records it, all or nothing. Does nothing for a turn of another process. */
    end: (id: string, batch: EventBatch, ended: EndedResponse) =>
      db.transaction(async (tx) => {
        const [, ...columns] = responseRows.toEnd(ended)
        const { rows } = await tx.$client.query<EndedRow>(endQuery, [id, processId, ...columns])
        const [row] = rows
        if (!row) return
        await append(tx, id, batch)
        const { status, ...owner } = row
        await recordEvent(tx, { ...owner, type: `response.${status}`, subject: ended.response.id })
      }),
    /** Lets all processes claim a turn of this one. */
    async release(id: string): Promise<void> {
      await db.$client.query(`UPDATE responses SET process_id = NULL WHERE ${isOurs}`, [id, processId])
    },
    /** The number of background turns of an instance that have not ended. */
    async countOf(instanceId: string): Promise<number> {
      const { rows } = await db.$client.query<{ count: number }>(
        'SELECT count(*)::int AS count FROM responses WHERE instance_id = $1 AND sealed_request IS NOT NULL',
        [instanceId],
      )
      return rows[0]?.count ?? 0
    },
    /** Reads the batches of events of a response that begin after a number. Concurrent calls share a query. */
    read: batched(1, async (asked: readonly { id: string; after: number }[]): Promise<EventBatch[][]> => {
      const first = new Map<string, number>()
      for (const { id, after } of asked) first.set(id, Math.min(after, first.get(id) ?? after))
      const { rows } = await db.$client.query<{ id: string; sequence: number; sealed: string }>({
        name: 'read_response_events',
        text: readQuery,
        values: [[...first.keys()], [...first.values()]],
      })
      const found = Map.groupBy(rows, ({ id }) => id)
      const batches = new Map(
        [...found].map(([id, sealed]) => [id, sealed.map((row) => unsealEvents(id, row.sequence, row.sealed))]),
      )
      return asked.map(({ id, after }) => (batches.get(id) ?? []).filter(({ sequence }) => sequence > after))
    }),
  }
}

export type BackgroundRows = ReturnType<typeof createBackgroundRows>
