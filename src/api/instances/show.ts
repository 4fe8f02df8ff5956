import type { ShownBudget } from '#budgets/schemas.ts'
import { readOwnBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import type { Instance as Row } from '#database/schema.ts'
import type { Regions } from '#instances/regions.ts'
import { unsealSettings } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'
import { toInstance } from './schemas.ts'
import { toInstanceStatus } from './status.ts'

export interface ShowDeps {
  regions: Regions
  db: Db
  vault: Vault
  /** The base URL for clients. */
  publicUrl(): string
  /** Whether no worker is alive. */
  areWorkersMissing(): boolean
}

/** Converts rows to answers; without `mayConfigure`, private fields are null. */
export function createShow({ db, vault, regions, publicUrl, areWorkersMissing }: ShowDeps) {
  const view = () => ({ publicUrl: publicUrl(), areWorkersMissing: areWorkersMissing() })
  const showWith = (row: Omit<Row, 'sealedToken'>, budgets: ShownBudget[], mayConfigure = true) =>
    toInstance({
      row,
      settings: unsealSettings(vault, row),
      budgets,
      view: { ...view(), region: regions.shown(row), mayConfigure },
      status: toInstanceStatus(row, view()),
    })
  const show = async (row: Row, mayConfigure = true) => showWith(row, await readOwnBudgets(db, row.id), mayConfigure)
  return { view, showWith, show }
}

export type Show = ReturnType<typeof createShow>['show']
