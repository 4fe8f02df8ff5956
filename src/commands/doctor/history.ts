import { sql } from 'drizzle-orm'
import { keptDays } from '#history/retention.ts'
import type { Check, Finding } from './finding.ts'
import { readInstances, searchInstances } from './instances.ts'

const triggers = ['instances_events', 'instances_events_insert'] as const

/** Every change of status that an intent and a worker can make. */
const transitions = [
  'provisioning>running',
  'provisioning>error',
  'provisioning>terminated',
  'running>provisioning',
  'running>error',
  'running>stopped',
  'running>terminated',
  'stopped>provisioning',
  'stopped>terminated',
  'error>provisioning',
  'error>terminated',
]

const notRepairable =
  'History cannot be repaired. Find out who else writes to the database, or which version did it, and keep a dump.'

/** I6: the triggers that record the changes of instances exist and are enabled. */
export const recordingTriggers: Check = async function* ({ db }) {
  const { rows } = await db.execute<{ name: string }>(sql`
    SELECT tgname AS name FROM pg_trigger WHERE tgrelid = 'instances'::regclass AND tgenabled IN ('O', 'A')`)
  for (const trigger of triggers) {
    if (rows.some(({ name }) => name === trigger)) continue
    yield {
      area: 'history',
      what: `The trigger ${trigger} on the table instances is missing or disabled: changes are not recorded.`,
      whatToDo: `Enable it: ALTER TABLE instances ENABLE TRIGGER ${trigger}. If it is missing, restore it from the migrations.`,
    }
  }
}

/**
 * I2, I5: each event of an instance begins with the status that the one before it ended with, every change of status is
 * one that can happen, and the last event ends with the status of the row.
 */
export const brokenChains: Check = async function* (deps) {
  const { db } = deps
  for await (const page of readInstances(deps, 'brokenChains', sql`false`)) {
    const ids = sql`ANY(${sql.param(page.ids)}::uuid[])`
    const brokenLinks = await db.execute<{
      instance: string
      event: string
      before: string
      from: string
      to: string
    }>(sql`
      SELECT instance_id AS instance, id AS event, before, from_status AS from, to_status AS to
      FROM (
        SELECT instance_id, id, from_status, to_status,
               lag(to_status) OVER (PARTITION BY instance_id ORDER BY id) AS before
        FROM events WHERE instance_id = ${ids} AND to_status IS NOT NULL
      ) chain
      WHERE (before IS NOT NULL AND from_status IS DISTINCT FROM before)
         OR (from_status <> to_status AND from_status || '>' || to_status <> ALL (${sql.param(transitions)}::text[]))
         OR (from_status IS NULL AND to_status <> 'provisioning')
      ORDER BY instance_id, id`)
    for (const link of brokenLinks.rows) yield brokenLink(link)
    const wrongEnds = await db.execute<{ instance: string; recorded: string; status: string; generation: number }>(sql`
      SELECT i.id AS instance, e.to_status AS recorded, instance_status(i) AS status, i.generation
      FROM instances i CROSS JOIN LATERAL (
        SELECT to_status FROM events WHERE instance_id = i.id AND to_status IS NOT NULL ORDER BY id DESC LIMIT 1
      ) e
      WHERE i.id = ${ids} AND e.to_status <> instance_status(i)`)
    for (const { instance, recorded, status, generation } of wrongEnds.rows) {
      yield {
        area: 'history',
        what: `The instance ${instance} is ${status}, and its last event ends with ${recorded}.`,
        whatToDo: notRepairable,
        version: generation,
      }
    }
  }
}

function brokenLink(link: { instance: string; event: string; before: string | null; from: string | null; to: string }) {
  const { instance, event, before, from, to } = link
  const isGap = before !== null && from !== before
  const finding: Finding = {
    area: 'history',
    what: isGap
      ? `The event ${event} of the instance ${instance} begins with ${from}, and the one before it ended with ${before}.`
      : `The event ${event} of the instance ${instance} leads from ${from ?? 'nothing'} to ${to}: Chowder never does that.`,
    whatToDo: notRepairable,
  }
  return finding
}

/** I6: every instance that is younger than the oldest event has the event of its creation. */
export const missingCreations: Check = async function* (deps) {
  // NOT EXISTS might be answered by a table of all events for each page.
  const hasNoCreation = sql`
    created_at > (SELECT min(created_at) FROM events)
    AND created_at > now() - make_interval(days => ${keptDays - 1})
    AND (
      SELECT true FROM events e
      WHERE e.instance_id = instances.id AND e.from_status IS NULL AND e.to_status IS NOT NULL LIMIT 1) IS NULL`
  for await (const { id } of searchInstances(deps, 'missingCreations', hasNoCreation)) {
    yield { area: 'history', what: `The instance ${id} has no event of its creation.`, whatToDo: notRepairable }
  }
}
