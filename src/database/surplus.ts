import { type SQL, sql } from 'drizzle-orm'
import type { Db } from './client.ts'
import { organizations } from './schema.ts'

const GiB = 1024 ** 3

/** Maximum bytes of each kind of row per organization. */
export const defaultKeptBytes = { responses: 10 * GiB, events: GiB, model_calls: GiB }
type Kind = keyof typeof defaultKeptBytes

/** Maximum rows and bytes per statement. The last row of a batch may exceed the bytes. */
const maxRows = 1000
const maxBytes = 8 * 1024 * 1024

interface Sizes {
  /** The columns whose length counts, and the flat size of a row. */
  texts: readonly string[]
  flatBytes: number
  /** The columns that order rows by age. */
  age: string
  /** The rows of an organization. By all columns of an index: otherwise the planner may read the rows of all others. */
  ofOrganization(id: string): SQL
}

const kinds: Record<Kind, Sizes> = {
  responses: {
    texts: ['sealed_object', 'sealed_input'],
    flatBytes: 200,
    age: 'created_at, id',
    ofOrganization: (id) => sql`instance_id IN (SELECT id FROM instances WHERE organization_id = ${id})`,
  },
  events: {
    texts: ['subject', 'reason', 'request_id'],
    flatBytes: 500,
    age: 'organization_id, id',
    ofOrganization: (id) =>
      sql`(organization_id, id) > (${id}, 0) AND (organization_id, id) < (${id}, ${sql.raw(String(2n ** 63n - 1n))})`,
  },
  model_calls: {
    texts: ['session', 'end_user', 'model'],
    flatBytes: 300,
    age: 'organization_id, began_at',
    ofOrganization: (id) =>
      sql`(organization_id, began_at) > (${id}, '-infinity') AND (organization_id, began_at) < (${id}, 'infinity')`,
  },
}

/**
 * Sums up the responses, events and model calls of every organization, and deletes the oldest rows of those with more
 * than `keptBytes`, in batches. Reads no value that is stored outside of its row. Throws the reason of the signal
 * between two statements. After a crash the next run does the rest.
 */
export async function deleteSurplus(db: Db, signal?: AbortSignal, keptBytes = defaultKeptBytes): Promise<void> {
  for (const { id } of await db.select({ id: organizations.id }).from(organizations)) {
    for (const kind of Object.keys(kinds) as Kind[]) {
      signal?.throwIfAborted()
      await deleteSurplusOf(db, id, kind, keptBytes[kind], signal)
    }
  }
}

async function deleteSurplusOf(db: Db, id: string, kind: Kind, keptBytes: number, signal?: AbortSignal): Promise<void> {
  const { texts, flatBytes, age, ofOrganization } = kinds[kind]
  const table = sql.raw(kind)
  const order = sql.raw(age)
  const size = sql.raw([flatBytes, ...texts.map((name) => `coalesce(octet_length(${name}), 0)`)].join(' + '))
  const { rows } = await db.execute<{ bytes: string | null }>(sql`
    SELECT sum(${size}) AS bytes FROM ${table} WHERE ${ofOrganization(id)}`)
  for (let surplus = Number(rows[0]?.bytes ?? 0) - keptBytes; surplus > 0; ) {
    signal?.throwIfAborted()
    const deleted = await db.execute<{ bytes: number }>(sql`
      DELETE FROM ${table} WHERE id IN (
        SELECT id FROM (
          SELECT id, sum(bytes) OVER (ORDER BY ${order}) - bytes AS before FROM (
            SELECT *, ${size} AS bytes FROM ${table} WHERE ${ofOrganization(id)} ORDER BY ${order} LIMIT ${maxRows}
          ) AS oldest
        ) AS sized WHERE before < ${Math.min(surplus, maxBytes)}
      ) RETURNING ${size} AS bytes`)
    if (deleted.rows.length === 0) return
    surplus -= deleted.rows.reduce((sum, { bytes }) => sum + bytes, 0)
  }
}
