import { eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { installation } from '#database/schema.ts'
import type { Vault } from '#platform/secrets.ts'
import { type Check, type Finding, pageSize } from './finding.ts'

/** The form of a sealed value: its nonce and tag alone take 38 characters. */
const sealedForm = /^v1\.[A-Za-z0-9_-]{38,}$/

/** Whether a value can be unsealed where it is stored. */
export const canUnseal = (vault: Vault, sealed: string, place: string): boolean => {
  try {
    vault.unseal(sealed, place)
    return true
  } catch {
    return false
  }
}

/** Why no stored secret can be unsealed; null when the key is right, or the database does not know any key yet. */
async function keyFault(db: Db, vault: Vault | null): Promise<string | null> {
  const [known] = await db.select().from(installation).where(eq(installation.name, 'secret-key-check'))
  if (!vault) return 'The secret key is missing: no stored secret can be read.'
  if (!known || canUnseal(vault, known.value, 'installation/secret-key-check/value')) return null
  return 'The secret key is not the one that this database was sealed with.'
}

/** I7: the key that unseals the stored secrets is there. */
export const secretKey: Check = async function* ({ db, vault }) {
  const what = await keyFault(db, vault)
  if (!what) return
  yield {
    area: 'secrets',
    what,
    whatToDo: 'Restore the key from a backup: CHOWDER_SECRET_KEY, or the file secret-key in the data folder.',
  }
}

interface SealedColumn {
  table: string
  column: string
  key: string[]
}

/** Every column whose name begins with `sealed_`, with the primary key of its table. */
async function findSealedColumns(db: Db): Promise<SealedColumn[]> {
  const { rows } = await db.execute<{ table: string; column: string; key: string[] }>(sql`
    SELECT c.table_name AS table, c.column_name AS column,
           array_agg(k.column_name::text ORDER BY k.ordinal_position) AS key
    FROM information_schema.columns c
    JOIN information_schema.table_constraints t
      ON t.table_schema = c.table_schema AND t.table_name = c.table_name AND t.constraint_type = 'PRIMARY KEY'
    JOIN information_schema.key_column_usage k
      ON k.constraint_schema = t.constraint_schema AND k.constraint_name = t.constraint_name AND k.table_name = t.table_name
    WHERE c.table_schema = current_schema() AND c.column_name LIKE 'sealed\\_%'
    GROUP BY 1, 2 ORDER BY 1, 2`)
  return rows
}

const commaSeparated = (parts: SQL[]) => sql.join(parts, sql`, `)

async function* sealedRows(db: Db, { table, column, key }: SealedColumn) {
  const keys = key.map((name) => sql`${sql.identifier(name)}`)
  let after: string[] | undefined
  for (;;) {
    const isNext = after && sql`AND (${commaSeparated(keys)}) > (${commaSeparated(after.map((part) => sql`${part}`))})`
    const { rows } = await db.execute<{ key: string[]; sealed: string }>(sql`
      SELECT ARRAY[${commaSeparated(keys.map((name) => sql`${name}::text`))}] AS key, ${sql.identifier(column)} AS sealed
      FROM ${sql.identifier(table)}
      WHERE ${sql.identifier(column)} IS NOT NULL ${isNext ?? sql``}
      ORDER BY ${commaSeparated(keys)} LIMIT ${pageSize}`)
    yield* rows
    after = rows.at(-1)?.key
    if (!after || rows.length < pageSize) return
  }
}

/** Erased instances have an empty text there. */
const isErased = ({ table }: SealedColumn, sealed: string) => table === 'instances' && sealed === ''

/** I7: every stored secret is sealed, and can be unsealed where it is stored. */
export const sealedColumns: Check = async function* ({ db, vault }) {
  if (await keyFault(db, vault)) return
  for (const sealedColumn of await findSealedColumns(db)) {
    const { table, column } = sealedColumn
    for await (const { key, sealed } of sealedRows(db, sealedColumn)) {
      const row = key.join('.')
      if (isErased(sealedColumn, sealed)) continue
      if (vault && canUnseal(vault, sealed, `${table}/${row}/${column}`)) continue
      yield unreadable(table, column, row, sealedForm.test(sealed))
    }
  }
}

const unreadable = (table: string, column: string, row: string, isSealed: boolean): Finding =>
  isSealed
    ? {
        area: 'secrets',
        what: `${table}.${column} of ${row} cannot be unsealed: it was sealed with another key or for another row, or altered.`,
        whatToDo: 'Restore it from a backup, or have its owner set the secret again.',
      }
    : {
        area: 'secrets',
        what: `${table}.${column} of ${row} is not sealed: it can be read in the database and in its backups.`,
        whatToDo: 'Have the secret replaced by a new one, and set again. Find out who wrote the row.',
      }
