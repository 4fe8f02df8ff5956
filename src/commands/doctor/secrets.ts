import { isKeyRight } from '#composition/vault.ts'
import type { Db } from '#database/client.ts'
import { findSealedColumns, sealedPages } from '#database/sealed-columns.ts'
import { type Place, sealedForm, sealedPrefix, type Vault } from '#platform/secrets.ts'
import type { Check, Finding } from './finding.ts'

/** Whether a value can be unsealed in its place. */
export const canUnseal = (vault: Vault, sealed: string, place: Place): boolean => {
  try {
    vault.unseal(sealed, place)
    return true
  } catch {
    return false
  }
}

/** The reason why no stored secret can be unsealed; null when the key is right, or before the first start. */
async function keyFault(db: Db, vault: Vault | null): Promise<string | null> {
  if (!vault) return 'The secret key is missing: no stored secret can be read.'
  return (await isKeyRight(db, vault)) ? null : 'The secret key is not the one that this database was sealed with.'
}

/** I7: the key of the stored secrets is available. */
export const secretKey: Check = async function* ({ db, vault }) {
  const what = await keyFault(db, vault)
  if (!what) return
  yield {
    area: 'secrets',
    what,
    whatToDo: 'Restore the key from a backup: CHOWDER_SECRET_KEY, or the file secret-key in the data folder.',
  }
}

/** I7: every stored secret is sealed, and can be unsealed in its place. Of two keys the first one has sealed it. */
export const sealedColumns: Check = async function* ({ db, vault }) {
  if (!vault || (await keyFault(db, vault))) return
  const { keyIds } = vault
  for (const sealedColumn of await findSealedColumns(db)) {
    const { table, column } = sealedColumn
    let hasOther = false
    for await (const values of sealedPages(db, sealedColumn)) {
      for (const { place, sealed } of values) {
        if (canUnseal(vault, sealed, place))
          hasOther ||= keyIds.length > 1 && !sealed.startsWith(sealedPrefix(keyIds[0]))
        // The installation's values have separate checks.
        else if (table !== 'installation') yield unreadable(place, sealedForm.test(sealed))
      }
    }
    if (hasOther) yield sealedWithOtherKey(table, column)
  }
}

const sealedWithOtherKey = (table: string, column: string): Finding => ({
  area: 'secrets',
  what: `Values of ${table}.${column} are not sealed with the first secret key, but with the other one that is accepted.`,
  whatToDo: 'Seal them with the first key: npm run admin -- reseal. Keep the other key until then.',
})

const unreadable = (place: Place, isSealed: boolean): Finding =>
  isSealed
    ? {
        area: 'secrets',
        what: `The value at ${place} cannot be unsealed: it was sealed with another key or for another row, or altered.`,
        whatToDo: 'Restore it from a backup, or have its owner set the secret again.',
      }
    : {
        area: 'secrets',
        what: `The value at ${place} is not sealed: it can be read in the database and in its backups.`,
        whatToDo: 'Have the secret replaced by a new one, and set again. Find out who wrote the row.',
      }
