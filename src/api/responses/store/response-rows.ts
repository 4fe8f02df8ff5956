import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { toUuid } from '#api/responses/format/response-writer.ts'
import type { StoredItem } from '#api/responses/format/stored-input.ts'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import { isProcessAlive } from '#database/processes.ts'
import { isLongerThan } from '#platform/json/length.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import type { TurnSession } from '#turns/admit.ts'
import type { Turn } from '#turns/turn.ts'

/** Whether the turn of a row of `responses` was lost with its process, as SQL text. Background turns are taken over. */
export const lostSql = `(status = 'in_progress' AND sealed_request IS NULL
  AND NOT ${isProcessAlive('responses.process_id')})`

/** Larger contents are not stored: the row then has none. */
const maxContentCharacters = 1024 * 1024

/** The sealing contexts of contents, so that none can be moved to another row or column. */
const objectContext = (uuid: string): Place => `responses/${uuid}/sealed_object`
const inputContext = (uuid: string): Place => `responses/${uuid}/sealed_input`
export const requestContext = (uuid: string): Place => `responses/${uuid}/sealed_request`

/** A row to write, with sealed contents, as the values of its columns. */
export type Columns = readonly (string | null)[]

/** A response whose turn begins. */
export interface StartedResponse extends TurnSession {
  id: string
  /** Ended when the response is cancelled. A background turn has none yet. */
  turn?: Pick<Turn, 'end'>
  /** The request of a background turn, as JSON. Its row is written before its client is answered. */
  backgroundRequest?: string
  /** Whether its contents are stored beside its row. */
  isStored: boolean
  /** The response as its turn begins, and the input items as clients read them later. */
  response(): ResponseObject
  input(): readonly StoredItem[]
  answeredCallIds: readonly string[]
}

/** A response whose turn has ended, with its JSON. */
export interface EndedResponse {
  response: ResponseObject
  json: string
}

/**
 * The row may exist: it was written, and the answer of the database was lost. It must not fail the rest of the batch. A
 * row whose contents were deleted, or never stored, gets none.
 */
const insertQuery = `
  INSERT INTO responses (id, organization_id, instance_id, session_key, status,
    answered_call_ids, sealed_object, sealed_input, item_ids, call_ids, sealed_request, process_id)
  SELECT x.id, x.organization, x.instance, x.session, x.status,
    ARRAY(SELECT jsonb_array_elements_text(x.answered)), x.object, x.input,
    ARRAY(SELECT jsonb_array_elements_text(x.items)), ARRAY(SELECT jsonb_array_elements_text(x.calls)), x.request,
    CASE WHEN x.request IS NULL THEN $12::uuid END
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[],
      $6::jsonb[], $7::text[], $8::text[], $9::jsonb[], $10::jsonb[], $11::text[])
    AS x (id, organization, instance, session, status, answered, object, input, items, calls, request)
  JOIN instances i ON i.id = x.instance AND i.desired_state <> 'terminated'
  ON CONFLICT (id) DO UPDATE SET
    status = CASE responses.status WHEN 'cancelled' THEN 'cancelled' ELSE excluded.status END,
    sealed_object = CASE WHEN responses.sealed_object IS NOT NULL THEN excluded.sealed_object END,
    item_ids = excluded.item_ids, call_ids = excluded.call_ids
  WHERE excluded.status <> 'in_progress'`

const endQuery = `
  UPDATE responses r SET status = CASE r.status WHEN 'cancelled' THEN 'cancelled' ELSE x.status END,
    sealed_object = CASE WHEN r.sealed_object IS NOT NULL THEN x.object END,
    item_ids = ARRAY(SELECT jsonb_array_elements_text(x.items)),
    call_ids = ARRAY(SELECT jsonb_array_elements_text(x.calls))
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::jsonb[]) AS x (id, status, object, items, calls)
  WHERE r.id = x.id`

/** The values of each column, for `unnest`. */
function byColumn(rows: readonly Columns[]): (string | null)[][] {
  const columns: (string | null)[][] = []
  for (const row of rows) {
    for (const [index, value] of row.entries()) {
      columns[index] ??= []
      columns[index].push(value)
    }
  }
  return columns
}

/** Rows of the responses of one process, with sealed contents, and the statements that write many of them at once. */
export function createResponseRows(db: Db, vault: Vault, processId: string) {
  const seal = (text: string, context: Place): string | null =>
    text.length > maxContentCharacters ? null : vault.seal(text, context)
  const sealJson = (value: unknown, context: Place): string | null =>
    isLongerThan(value, maxContentCharacters) ? null : seal(JSON.stringify(value), context)
  const itemIds = ({ output }: ResponseObject) => JSON.stringify(output.map(({ id }) => id))
  const callIds = ({ output }: ResponseObject) =>
    JSON.stringify(output.flatMap((item) => (item.type === 'function_call' ? [item.call_id] : [])))
  const insert = (into: Db, rows: readonly Columns[]) =>
    into.$client.query({ name: 'insert_responses', text: insertQuery, values: [...byColumn(rows), processId] })

  return {
    /** The row of a response whose turn begins or has ended. */
    toInsert(started: StartedResponse, ended?: EndedResponse): Columns {
      const uuid = toUuid(started.id)
      const object = () =>
        ended ? seal(ended.json, objectContext(uuid)) : sealJson(started.response(), objectContext(uuid))
      const input = () => sealJson(started.input(), inputContext(uuid))
      return [
        uuid,
        started.organizationId,
        started.instanceId,
        started.sessionKey,
        ended?.response.status ?? 'in_progress',
        JSON.stringify(started.answeredCallIds),
        started.isStored ? object() : null,
        started.isStored ? input() : null,
        ended ? itemIds(ended.response) : '[]',
        ended ? callIds(ended.response) : '[]',
        started.backgroundRequest === undefined ? null : vault.seal(started.backgroundRequest, requestContext(uuid)),
      ]
    },
    /** The columns that the end of a turn changes. */
    toEnd({ response, json }: EndedResponse): Columns {
      const uuid = toUuid(response.id)
      const object = response.store ? seal(json, objectContext(uuid)) : null
      return [uuid, response.status, object, itemIds(response), callIds(response)]
    },
    insert,
    /** Writes a row in one statement with all concurrent ones. */
    insertOne: batched(1, async (rows: readonly Columns[]) => {
      await insert(db, rows)
      return rows.map(() => undefined)
    }),
    /** Writes the end of a turn in one statement with all concurrent ones. */
    endOne: batched(1, async (rows: readonly Columns[]) => {
      await db.$client.query({ name: 'end_responses', text: endQuery, values: byColumn(rows) })
      return rows.map(() => undefined)
    }),
    unsealObject: (uuid: string, text: string): ResponseObject => JSON.parse(vault.unseal(text, objectContext(uuid))),
    unsealInput: (uuid: string, text: string): StoredItem[] => JSON.parse(vault.unseal(text, inputContext(uuid))),
  }
}

export type ResponseRows = ReturnType<typeof createResponseRows>
