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
const enough = { reads: 500, turns: 200 }
const enoughOfUsual = { reads: 250, turns: 80 }
const enoughMs = { attack: 12 * 60_000, usual: 3 * 60_000 }
const mostFailures = 20
/** A session of more turns would have longer ones. */
const turnsOfSession = 40
/**
 * At least, from the beginning of one to that of the next. OpenClaw 2026.9.6 ends the thread that reads transcripts
 * once a minute, and the next turn waits some 2 s for a new one: with 60 turns a minute these are more than one in a
 * hundred whatever the others take. With a pause after each turn they were 0.7 of a hundred without an attack, and more
 * than one with it.
 */
const everyMs = { reads: 40, turns: 1000 }
/** How many times as long as usual an answer may take. */
const bar = 1.5

const percentile = (times: readonly number[], percent: number) =>
  [...times].sort((a, b) => a - b)[Math.ceil((times.length * percent) / 100) - 1] ?? Number.NaN

/** Reads and turns of a tenant at a steady rate, until it is closed. */
export function measureTenant(client: Api, id: string) {
  let times: Times = { reads: [], turns: [], failures: [] }
  let sessions = 0
  let isOver = false

  async function again(of: 'reads' | 'turns', act: () => Promise<unknown>) {
    while (!isOver) {
      const into = times
      const startedAt = performance.now()
      await act().then(
        () => into[of].push(performance.now() - startedAt),
        ({ message }: Error) => {
          if (into.failures.length < mostFailures) into.failures.push(message)
        },
      )
      await sleep(Math.max(10, startedAt + everyMs[of] - performance.now()))
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
  const loops = [again('reads', read), again('turns', turn)]

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
    const withRatio = (percent: number) => {
      const ms = percentile(times[of], percent)
      const ratio = ms / percentile(usual[of], percent)
      return [String(Math.round(ms)), ratio > bar ? `**${ratio.toFixed(2)}**` : ratio.toFixed(2)]
    }
    return [String(times[of].length), ...[50, 95, 99].flatMap(withRatio)]
  }
  const columns = (of: string) => [of, ...['p50', 'p95', 'p99'].flatMap((name) => [`${name} ms`, '× usual'])]
  const table = [
    ['attack', 'by', 'came of it', ...columns('reads'), ...columns('turns'), 'failed'],
    Array.from({ length: 18 }, () => '---'),
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
