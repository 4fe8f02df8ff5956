import type { FastifyInstance } from 'fastify'
import { createResponseStore, type ResponseStore } from '#api/responses/store/response-store.ts'
import type { Db } from '#database/client.ts'
import { createWatches } from '#openclaw/gateway/watches.ts'
import type { Vault } from '#platform/secrets.ts'
import { beginSchedules } from '#schedules/run-due.ts'
import type { Turns } from '#turns/turns.ts'
import type { AcceptParts } from './accept.ts'
import { type BackgroundRows, createBackgroundRows } from './background-rows.ts'
import { type BackgroundDeps, createBackgroundTurns } from './background-turns.ts'
import { createUnattendedTurns, type UnattendedTurns } from './unattended-turns.ts'

interface Deps extends Pick<BackgroundDeps, 'findGateway' | 'findSummary' | 'declareModel'> {
  db: Db
  vault: Vault
  processId: string
  turns: Turns
}

/** The parts that store responses, and run background turns. */
export interface Background {
  store: ResponseStore
  rows: BackgroundRows
  watches: BackgroundDeps['watches']
  /** The parts for `acceptBackground`. */
  accepting: AcceptParts
  unattended: UnattendedTurns
  /** Claims waiting turns now. */
  wake(): void
}

/** Runs the background turns and the schedules that no living process runs, until the API closes. */
export function useBackground(app: FastifyInstance, deps: Deps): Background {
  const { db, vault, processId, turns } = deps
  const { log } = app
  const store = createResponseStore(db, vault, processId, log)
  const watches = createWatches()
  const rows = createBackgroundRows(db, vault, processId)
  const { wake, close } = createBackgroundTurns({ ...deps, rows, watches, log })
  const accepting = { admission: turns.admission, store, rows, vault }
  const unattended = createUnattendedTurns(accepting, wake)
  const schedules = beginSchedules({ db, vault, ...unattended, log })
  // Before the drain: other processes go on with the background turns.
  app.addHook('preClose', async () => {
    await Promise.all([schedules.close(), close()])
  })
  app.addHook('onClose', async () => {
    watches.close()
    await store.close()
  })
  return { store, rows, watches, accepting, unattended, wake }
}
