import { keyCheckName, requireFirstKey } from '#composition/vault.ts'
import type { Db } from '#database/client.ts'
import { findSealedColumns, replaceSealed, type SealedColumn, sealedPages } from '#database/sealed-columns.ts'
import { sealedPrefix, type Vault } from '#platform/secrets.ts'
import type { Command, CommandDeps, Output } from './command.ts'

/** The next pass seals the values that changed during this one. */
const maxPasses = 10

interface Resealed {
  /** The number of resealed values. */
  resealed: number
  /** The number of values whose rows changed meanwhile. */
  missed: number
  /** The number of values that no accepted key unseals. They stay unchanged. */
  unreadable: number
}

/**
 * Reseals all stored secrets with the first key, while Chowder serves; afterwards a start needs that key. It may be
 * killed at any point and run again: each value is either unchanged or resealed. Throws an Error for the operator while
 * a process still seals with the other key.
 */
export async function reseal({ db, vault, report }: Pick<CommandDeps, 'db' | 'vault' | 'report'>): Promise<Output> {
  const keys = await vault()
  const columns = await findSealedColumns(db)
  let resealed = 0
  let unreadable = 0
  for (let pass = 1; ; pass += 1) {
    let found = 0
    unreadable = 0
    for (const column of columns) {
      const result = await resealColumn(db, keys, column)
      resealed += result.resealed
      unreadable += result.unreadable
      found += result.resealed + result.missed
      if (result.resealed > 0) report(`${column.table}.${column.column}: ${result.resealed} values sealed again`)
    }
    if (found === 0) break
    if (pass === maxPasses) {
      throw new Error(
        'A process still seals with the other key. Give every process the new key first, and run this again.',
      )
    }
  }
  await requireFirstKey(db, keys)
  return conclude(keys, resealed, unreadable)
}

async function resealColumn(db: Db, vault: Vault, column: SealedColumn): Promise<Resealed> {
  const total = { resealed: 0, missed: 0, unreadable: 0 }
  for await (const values of sealedPages(db, column, sealedPrefix(vault.keyIds[0]))) {
    const replacements = values.flatMap(({ ctid, sealed, place }) => {
      if (place === `installation/${keyCheckName}/value`) return []
      try {
        return [{ ctid, sealed, by: vault.seal(vault.unseal(sealed, place), place) }]
      } catch {
        total.unreadable += 1
        return []
      }
    })
    const resealed = replacements.length > 0 ? await replaceSealed(db, column, replacements) : 0
    total.resealed += resealed
    total.missed += replacements.length - resealed
  }
  return total
}

function conclude({ keyIds: [id, other] }: Vault, resealed: number, unreadable: number): Output {
  const sentences = [`All stored secrets are sealed with the secret key ${id}: ${resealed} were sealed again.`]
  if (unreadable > 0) sentences.push(`No key unseals ${unreadable} other values. npm run doctor names them.`)
  if (other === undefined) sentences.push('There is no other key. docs/operations.md says how to change it.')
  else sentences.push(`Remove the old key ${other}. Backups need the key that they were made with.`)
  return { text: sentences.join('\n'), data: { key_id: id, old_key_id: other ?? null, resealed, unreadable } }
}

export const secretKeyCommands: Readonly<Record<string, Command>> = {
  reseal: {
    parameters: [],
    summary: 'seals all stored secrets with the first secret key, while Chowder runs; can be killed and run again',
    run: reseal,
  },
}
