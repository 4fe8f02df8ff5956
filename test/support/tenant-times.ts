import { setTimeout as sleep } from 'node:timers/promises'
import { type Api, say, sessionPath } from './api-client.ts'
import { until } from './until.ts'

/** In ms; of a tenant. */
export interface Times {
  reads: number[]
  turns: number[]
  /** What the first requests that failed said. */
  failures: string[]
}

/** What a row of the table needs at least, and a look at what is usual before it. */
const enough = { reads: 500, turns: 400 }
const enoughOfUsual = { reads: 250, turns: 100 }
const enoughMs = { attack: 12 * 60_000, usual: 3 * 60_000 }
const mostFailures = 20
/** A session of more turns would have longer ones. */
const turnsOfSession = 40
/** How many times as long as usual the slowest of a hundred may take. */
const bar = 1.5

const percentile = (times: readonly number[], percent: number) =>
  [...times].sort((a, b) => a - b)[Math.ceil((times.length * percent) / 100) - 1] ?? Number.NaN

/** Reads and turns of a tenant at a steady rate, until it is closed. */
export function measureTenant(client: Api, id: string) {
  let times: Times = { reads: [], turns: [], failures: [] }
  let sessions = 0
  let isOver = false

  async function again(pauseMs: number, of: 'reads' | 'turns', act: () => Promise<unknown>) {
    while (!isOver) {
      const into = times
      const startedAt = performance.now()
      await act().then(
        () => into[of].push(performance.now() - startedAt),
        ({ message }: Error) => {
          if (into.failures.length < mostFailures) into.failures.push(message)
        },
      )
      await sleep(pauseMs)
    }
  }
  const read = async () => {
    const { status, body } = await client.get(`/v1/instances/${id}`)
    if (status !== 200) throw new Error(`${status} ${JSON.stringify(body)}`)
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
      times = { reads: [], turns: [], failures: [] }
      return taken
    },
    /** Waits until enough has been measured since the last `take`, and does something again and again until then. */
    enough: (of: 'attack' | 'usual', meanwhile?: () => Promise<unknown>) => {
      const { reads, turns } = of === 'attack' ? enough : enoughOfUsual
      const isEnough = async () => {
        await meanwhile?.()
        return times.reads.length >= reads && times.turns.length >= turns
      }
      return until('enough reads and turns', isEnough, enoughMs[of])
    },
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

/**
 * The times of a tenant during attacks as a table in Markdown, beside those without one: times of all of these looks
 * together, since what is usual changes within hours. Its last row is the last of these looks, and tells how much.
 */
export function timesTable(looks: readonly Times[], attacks: readonly Row[]): string {
  const usual: Times = {
    reads: looks.flatMap(({ reads }) => reads),
    turns: looks.flatMap(({ turns }) => turns),
    failures: looks.flatMap(({ failures }) => failures),
  }
  const none = { attack: 'none', by: '', result: '' }
  const last = looks.at(-1) ?? usual
  const rows = [{ ...none, times: usual }, ...attacks, { ...none, result: 'after all others', times: last }]
  const cells = (of: 'reads' | 'turns', { times }: Row) => {
    const [median, p95, p99] = [50, 95, 99].map((percent) => percentile(times[of], percent)) as [number, number, number]
    const ratio = p99 / percentile(usual[of], 99)
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
      String(row.times.failures.length),
    ]),
  ]
  return table.map((row) => `| ${row.join(' | ')} |`).join('\n')
}
