import { eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { installation } from '#database/schema.ts'
import type { Vault } from '#platform/secrets.ts'
import { type Check, type Finding, pageSize } from './finding.ts'

/** What the vault makes: nonce and tag alone are 38 characters. */
const sealedText = /^v1\.[A-Za-z0-9_-]{38,}$/

const canOpen = (vault: Vault, sealed: string, place: string): boolean => {
  try {
    vault.unseal(sealed, place)
    return true
  } catch {
    return false
  }
}

/** Why no stored secret can be opened; null when the key is the right one, or this database has never known any. */
async function keyFault(db: Db, vault: Vault | null): Promise<string | null> {
  const [known] = await db.select().from(installation).where(eq(installation.name, 'secret-key-check'))
  if (!vault) return 'The secret key is missing, and every stored secret with it.'
  if (!known || canOpen(vault, known.value, 'installation/secret-key-check/value')) return null
  return 'The secret key is not the one that this database was sealed with.'
}

/** I7: the key that opens the stored secrets is at hand. */
export const secretKey: Check = async function* ({ db, vault }) {
  const what = await keyFault(db, vault)
  if (!what) return
  yield {
    check: 'I7',
    what,
    whatToDo: 'Restore the old one from a backup: CHOWDER_SECRET_KEY, or the file secret-key in the data folder.',
  }
}

interface SealedColumn {
  table: string
  column: string
  key: string[]
}

/** Every column that is named as a sealed one, with its table's primary key: a new one is looked at without being listed here. */
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

const listed = (parts: SQL[]) => sql.join(parts, sql`, `)

async function* sealedRows(db: Db, { table, column, key }: SealedColumn) {
  const keys = key.map((name) => sql.identifier(name)).map((name) => sql`${name}`)
  let after: string[] | undefined
  for (;;) {
    const isNext = after && sql`AND (${listed(keys)}) > (${listed(after.map((part) => sql`${part}`))})`
    const { rows } = await db.execute<{ key: string[]; sealed: string }>(sql`
      SELECT ARRAY[${listed(keys.map((name) => sql`${name}::text`))}] AS key, ${sql.identifier(column)} AS sealed
      FROM ${sql.identifier(table)}
      WHERE ${sql.identifier(column)} IS NOT NULL ${isNext ?? sql``}
      ORDER BY ${listed(keys)} LIMIT ${pageSize}`)
    yield* rows
    after = rows.at(-1)?.key
    if (!after || rows.length < pageSize) return
  }
}

/** Erased rows of deleted organizations have an empty text there. */
const isErased = ({ table }: SealedColumn, sealed: string) => table === 'instances' && sealed === ''

/** I7: what is stored as a secret is sealed, and this installation can open it where it stands. */
export const sealedColumns: Check = async function* ({ db, vault }) {
  if (await keyFault(db, vault)) return
  for (const sealedColumn of await findSealedColumns(db)) {
    const { table, column } = sealedColumn
    for await (const { key, sealed } of sealedRows(db, sealedColumn)) {
      const row = key.join('.')
      if (isErased(sealedColumn, sealed)) continue
      if (vault && canOpen(vault, sealed, `${table}/${row}/${column}`)) continue
      yield unreadable(table, column, row, sealedText.test(sealed))
    }
  }
}

const unreadable = (table: string, column: string, row: string, isSealed: boolean): Finding =>
  isSealed
    ? {
        check: 'I7',
        what: `${table}.${column} of ${row} does not open: it was sealed with another key, for another row, or was altered.`,
        whatToDo: 'Restore it from a backup, or have its owner set that secret again.',
      }
    : {
        check: 'I7',
        what: `${table}.${column} of ${row} is not sealed: whoever reads the database, or a backup of it, reads the secret.`,
        whatToDo: 'Have that secret changed where it came from, and set again here. Find out who wrote the row.',
      }
