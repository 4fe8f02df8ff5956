import { isKeyCheck } from '#composition/vault.ts'
import type { Db } from '#database/client.ts'
import {
  countRows,
  findSealedColumns,
  replaceSealed,
  type SealedColumn,
  sealedPages,
} from '#database/sealed-columns.ts'
import { sealedPrefix, type Vault } from '#platform/secrets.ts'

/** The pause between two lines about one column, in ms. */
const reportEveryMs = 1000

export interface Resealed {
  /** The values that were sealed again. */
  resealed: number
  /** Those that somebody else has changed meanwhile: another pass finds them. */
  missed: number
  /** Those that no accepted key unseals. They stay as they are. */
  unreadable: number
}

const none: Resealed = { resealed: 0, missed: 0, unreadable: 0 }

const sum = (a: Resealed, b: Resealed): Resealed => ({
  resealed: a.resealed + b.resealed,
  missed: a.missed + b.missed,
  unreadable: a.unreadable + b.unreadable,
})

/**
 * Seals all stored values again that the first key of the vault has not sealed in the current format, and reports how
 * far it is. A crash leaves each value as it was or sealed again.
 */
export async function resealAll(db: Db, vault: Vault, report: (line: string) => void): Promise<Resealed> {
  let total = none
  for (const column of await findSealedColumns(db)) total = sum(total, await resealColumn(db, vault, column, report))
  return total
}

async function resealColumn(db: Db, vault: Vault, column: SealedColumn, report: (line: string) => void) {
  const all = await countRows(db, column)
  let rows = 0
  let total = none
  let reportedAt = performance.now()
  const progress = () => {
    const { resealed, unreadable } = total
    const others = unreadable > 0 ? `, ${unreadable} that no key unseals` : ''
    report(`${column.table}.${column.column}: ${rows} of ${all} rows, ${resealed} sealed again${others}`)
    reportedAt = performance.now()
  }
  for await (const page of sealedPages(db, column, { skipped: sealedPrefix(vault.keyIds[0]) })) {
    const values = page.values.filter(({ key }) => column.table !== 'installation' || !isKeyCheck(key[0] ?? ''))
    const replacements = values.flatMap(({ ctid, sealed, place }) => {
      try {
        return [{ ctid, sealed, by: vault.seal(vault.unseal(sealed, place), place) }]
      } catch {
        return []
      }
    })
    const resealed = replacements.length > 0 ? await replaceSealed(db, column, replacements) : 0
    const unreadable = values.length - replacements.length
    total = sum(total, { resealed, missed: replacements.length - resealed, unreadable })
    rows += page.rows
    if (performance.now() - reportedAt >= reportEveryMs) progress()
  }
  if (all > 0) progress()
  return total
}
