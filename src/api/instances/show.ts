import type { ShownBudget } from '#budgets/schemas.ts'
import { readOwnBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import type { Instance as Row } from '#database/schema.ts'
import { unsealSettings } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'
import { toInstance } from './schemas.ts'

export interface ShowDeps {
  db: Db
  vault: Vault
  /** The address that clients reach the API at. */
  publicUrl(): string
  /** Whether no worker has been seen lately. */
  areWorkersMissing(): boolean
}

/** Shows rows as callers see them; without `mayConfigure`, `error_message` has no words of the gateway. */
export function createShow({ db, vault, publicUrl, areWorkersMissing }: ShowDeps) {
  const view = () => ({ publicUrl: publicUrl(), areWorkersMissing: areWorkersMissing() })
  const showWith = (row: Omit<Row, 'sealedToken'>, budgets: ShownBudget[], mayConfigure = true) =>
    toInstance(row, unsealSettings(vault, row), budgets, { ...view(), mayConfigure })
  const show = async (row: Row, mayConfigure = true) => showWith(row, await readOwnBudgets(db, row.id), mayConfigure)
  return { view, showWith, show }
}

export type Show = ReturnType<typeof createShow>['show']
