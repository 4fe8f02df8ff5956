import { setTimeout as sleep } from 'node:timers/promises'
import { type Api, say, sessionPath } from './api-client.ts'
import { until } from './until.ts'

/** In ms; of a tenant. */
export interface Times {
  reads: number[]
  turns: number[]
  failed: number
}

/** What a row of the table needs at least. */
const enough = { reads: 500, turns: 200 }
const enoughMs = 6 * 60_000
/** A session of more turns would have longer ones. */
const turnsOfSession = 40
/** How many times as long as usual the slowest of a hundred may take. */
const bar = 1.5

const percentile = (times: readonly number[], percent: number) =>
  [...times].sort((a, b) => a - b)[Math.ceil((times.length * percent) / 100) - 1] ?? Number.NaN

/** Reads and turns of a tenant at a steady rate, until it is closed. */
export function measureTenant(client: Api, id: string) {
  let times: Times = { reads: [], turns: [], failed: 0 }
  let sessions = 0
  let isOver = false

  async function again(pauseMs: number, of: 'reads' | 'turns', act: () => Promise<unknown>) {
    while (!isOver) {
      const into = times
      const startedAt = performance.now()
      await act().then(
        () => into[of].push(performance.now() - startedAt),
        () => {
          into.failed += 1
        },
      )
      await sleep(pauseMs)
    }
  }
  const read = async () => {
    if ((await client.get(`/v1/instances/${id}`)).status !== 200) throw new Error('a read failed')
  }
  const turn = () => {
    if (times.turns.length % turnsOfSession === 0) sessions += 1
    return say(client, sessionPath(id, `session-${sessions}`), 'Hello')
  }
  const loops = [again(40, 'reads', read), again(100, 'turns', turn)]

  return {
    /** What was measured since the last call. */
    take(): Times {
      const taken = times
      times = { reads: [], turns: [], failed: 0 }
      return taken
    },
    /** Waits until enough has been measured since the last `take`. */
    enough: () =>
      until(
        'enough reads and turns',
        () => times.reads.length >= enough.reads && times.turns.length >= enough.turns,
        enoughMs,
      ),
    async close() {
      isOver = true
      await Promise.all(loops)
    },
  }
}

/** A row of the table: an attack, who made it, and what came of it. */
export interface Row {
  attack: string
  by: string
  result: string
  times: Times
}

/** The times of a tenant during attacks as a table in Markdown. The first row is without an attack. */
export function timesTable(rows: readonly Row[]): string {
  const [usual] = rows
  const cells = (of: 'reads' | 'turns', { times }: Row) => {
    const [median, p95, p99] = [50, 95, 99].map((percent) => percentile(times[of], percent)) as [number, number, number]
    const ratio = usual ? p99 / percentile(usual.times[of], 99) : Number.NaN
    const shown = ratio > bar ? `**${ratio.toFixed(1)}**` : ratio.toFixed(1)
    return [String(times[of].length), ...[median, p95, p99].map((ms) => String(Math.round(ms))), shown]
  }
  const columns = (of: string) => [`${of}`, 'p50 ms', 'p95 ms', 'p99 ms', '× usual p99']
  const table = [
    ['attack', 'by', 'came of it', ...columns('reads'), ...columns('turns'), 'failed'],
    Array.from({ length: 14 }, () => '---'),
    ...rows.map((row) => [
      row.attack,
      row.by,
      row.result,
      ...cells('reads', row),
      ...cells('turns', row),
      String(row.times.failed),
    ]),
  ]
  return table.map((row) => `| ${row.join(' | ')} |`).join('\n')
}
