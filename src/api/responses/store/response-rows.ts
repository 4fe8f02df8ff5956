import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import type { Vault } from '#platform/secrets.ts'
import { toUuid } from './lost-turns.ts'
import type { Columns } from './retried-writes.ts'
import type { SessionRef } from './session-history.ts'

/** Larger contents are not kept: only that there was such a response. */
const maxKeptCharacters = 1024 * 1024

const objectPlace = (uuid: string) => `responses/${uuid}/sealed_object`
const inputPlace = (uuid: string) => `responses/${uuid}/sealed_input`

export interface StartedResponse extends SessionRef {
  id: string
  /** Whether its contents are to be kept. */
  isStored: boolean
  /** The response as it begins, and the input items as they can be read later. */
  response(): ResponseObject
  input(): readonly object[]
  answeredCallIds: readonly string[]
}

export interface EndedResponse {
  response: ResponseObject
  json: string
}

/**
 * One whose beginning was written, and the answer to that lost, is there already; it must not fail the others. What is there
 * without contents, never kept or deleted, gets none at its end.
 */
const insertText = `
  INSERT INTO responses (id, organization_id, instance_id, session_key, status, answered_call_ids, sealed_object, sealed_input, item_ids, call_ids)
  SELECT x.id, x.organization, x.instance, x.session, x.status, ARRAY(SELECT jsonb_array_elements_text(x.answered)), x.object, x.input,
    ARRAY(SELECT jsonb_array_elements_text(x.items)), ARRAY(SELECT jsonb_array_elements_text(x.calls))
  FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::text[], $6::jsonb[], $7::text[], $8::text[], $9::jsonb[], $10::jsonb[])
    AS x (id, organization, instance, session, status, answered, object, input, items, calls)
  JOIN instances i ON i.id = x.instance AND i.desired_state <> 'terminated'
  ON CONFLICT (id) DO UPDATE SET status = CASE responses.status WHEN 'cancelled' THEN 'cancelled' ELSE excluded.status END,
    sealed_object = CASE WHEN responses.sealed_object IS NOT NULL THEN excluded.sealed_object END,
    item_ids = excluded.item_ids, call_ids = excluded.call_ids
  WHERE excluded.status <> 'in_progress'`

const finishText = `
  UPDATE responses r SET status = CASE r.status WHEN 'cancelled' THEN 'cancelled' ELSE x.status END,
    sealed_object = CASE WHEN r.sealed_object IS NOT NULL THEN x.object END,
    item_ids = ARRAY(SELECT jsonb_array_elements_text(x.items)), call_ids = ARRAY(SELECT jsonb_array_elements_text(x.calls))
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::jsonb[]) AS x (id, status, object, items, calls)
  WHERE r.id = x.id`

const byColumn = (rows: readonly Columns[]) => rows[0]!.map((_, at) => rows.map((row) => row[at]))

/** Rows of responses with their contents sealed, and the statements that write many of them at once. */
export function createResponseRows(db: Db, vault: Vault) {
  const sealed = (text: string, place: string): string | null =>
    text.length > maxKeptCharacters ? null : vault.seal(text, place)
  const itemIds = ({ output }: ResponseObject) => JSON.stringify(output.map(({ id }) => id))
  const callIds = ({ output }: ResponseObject) =>
    JSON.stringify(output.flatMap((item) => (item.type === 'function_call' ? [item.call_id] : [])))

  // Made before the batch: one that cannot be made is nobody else's failure.
  function toInsert(begun: StartedResponse, ended?: EndedResponse): Columns {
    const uuid = toUuid(begun.id)
    const object = () => sealed(ended?.json ?? JSON.stringify(begun.response()), objectPlace(uuid))
    const input = () => sealed(JSON.stringify(begun.input()), inputPlace(uuid))
    return [
      uuid,
      begun.organizationId,
      begun.instanceId,
      begun.sessionKey,
      ended?.response.status ?? 'in_progress',
      JSON.stringify(begun.answeredCallIds),
      begun.isStored ? object() : null,
      begun.isStored ? input() : null,
      ended ? itemIds(ended.response) : '[]',
      ended ? callIds(ended.response) : '[]',
    ]
  }
  function toFinish({ response, json }: EndedResponse): Columns {
    const uuid = toUuid(response.id)
    const object = response.store ? sealed(json, objectPlace(uuid)) : null
    return [uuid, response.status, object, itemIds(response), callIds(response)]
  }
  const insert = (into: Db, rows: readonly Columns[]) =>
    into.$client.query({ name: 'insert_responses', text: insertText, values: byColumn(rows) })
  const insertOne = batched(1, async (rows: readonly Columns[]) => {
    await insert(db, rows)
    return rows.map(() => undefined)
  })
  const finishOne = batched(1, async (rows: readonly Columns[]) => {
    await db.$client.query({ name: 'finish_responses', text: finishText, values: byColumn(rows) })
    return rows.map(() => undefined)
  })

  return {
    /** A turn as it begins, or as it ended when its beginning was not written. */
    toInsert,
    toFinish,
    insert,
    /** These two write a row together with all that came at the same time. */
    insertOne,
    finishOne,
    unsealObject: (uuid: string, text: string): ResponseObject => JSON.parse(vault.unseal(text, objectPlace(uuid))),
    unsealInput: (uuid: string, text: string): object[] => JSON.parse(vault.unseal(text, inputPlace(uuid))),
  }
}
