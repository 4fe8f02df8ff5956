import { setTimeout as sleep } from 'node:timers/promises'
import type pg from 'pg'
import type { FakeCloud } from '../support/fake-cloud.ts'

const lookEveryMs = 200

/** Measures how long it takes after a fault until all is well again. */
export interface Recovery {
  /** In ms, by kind of fault. One that something else came between is not counted. */
  times: Record<string, number[]>
  /** From now until every row that is due now is settled. */
  watchDue(kind: string): Promise<void>
  /** From now until this sandbox's gateway answers again and its row says so. */
  watchSandbox(kind: string, id: string): void
  /** Whether all that was to be watched has come about. */
  isIdle(): boolean
  close(): void
}

interface Row {
  id: string
  generation: number
  observed_generation: number
  is_running: boolean
}

interface Watch {
  kind: string
  since: number
  /** By instance, the generation that is waited for. */
  due: Map<string, number>
  sandbox: string | null
}

export function openRecovery(pool: pg.Pool, cloud: FakeCloud): Recovery {
  const times: Record<string, number[]> = {}
  const watches = new Set<Watch>()
  const closing = new AbortController()

  const finish = (watch: Watch) => {
    watches.delete(watch)
    times[watch.kind] ??= []
    times[watch.kind]?.push(performance.now() - watch.since)
  }

  async function look(): Promise<void> {
    const ids = new Set([...watches].flatMap(({ due, sandbox }) => [...due.keys(), ...(sandbox ? [sandbox] : [])]))
    if (ids.size === 0) return
    const { rows } = await pool.query<Row>(
      `SELECT id, generation, observed_generation, desired_state = 'running' AND ready_at IS NOT NULL AS is_running
       FROM instances WHERE id = ANY ($1)`,
      [[...ids]],
    )
    const byId = new Map(rows.map((row) => [row.id, row]))
    const healthy = new Set(cloud.sandboxes().flatMap(({ id, isHealthy }) => (isHealthy ? [id] : [])))
    for (const watch of watches) {
      const { due, sandbox } = watch
      for (const [id, generation] of due) if ((byId.get(id)?.observed_generation ?? 0) >= generation) due.delete(id)
      const row = sandbox === null ? undefined : byId.get(sandbox)
      if (sandbox === null) {
        if (due.size === 0) finish(watch)
      } else if (!row?.is_running && row?.generation === row?.observed_generation) {
        watches.delete(watch) // its owner stopped or deleted it meanwhile, or it was given up
      } else if (row?.is_running && row.generation === row.observed_generation && healthy.has(sandbox)) finish(watch)
    }
  }

  void (async () => {
    while (!closing.signal.aborted) {
      await look().catch(() => {}) // the database is just being disturbed
      await sleep(lookEveryMs, undefined, { signal: closing.signal }).catch(() => {})
    }
  })()

  return {
    times,
    async watchDue(kind) {
      const since = performance.now()
      const { rows } = await pool.query<Row>(
        'SELECT id, generation FROM instances WHERE observed_generation < generation',
      )
      const due = new Map(rows.map(({ id, generation }) => [id, generation]))
      if (due.size > 0) watches.add({ kind, since, due, sandbox: null })
    },
    watchSandbox: (kind, id) => void watches.add({ kind, since: performance.now(), due: new Map(), sandbox: id }),
    isIdle: () => watches.size === 0,
    close: () => closing.abort(),
  }
}
