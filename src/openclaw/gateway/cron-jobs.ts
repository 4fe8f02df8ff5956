import { isObject } from '#openclaw/json.ts'
import type { GatewayClient } from './gateway.ts'

const callTimeoutMs = 10_000
const jobsPerPage = 200
const maxPages = 10
/** Far beyond any calendar, and within the range of PostgreSQL's timestamps. */
const maxTimeMs = 8.64e15
/** An agent writes its jobs, so the length of texts is limited. */
const maxTextCharacters = 4000
/** Jobs of OpenClaw itself, which may wait until something else wakes the agent. */
const ownJobs = ['heartbeat-main', 'skill-collection-review-main']

/** A job that an agent has made with its tools. Times are in ms since 1970. */
export interface CronJob {
  id: string
  name: string
  /** OpenClaw's kind: `cron`, `at`, `every`, `on-exit` or `stream`. */
  kind: string
  /** The cron expression with its zone, the time, the interval, or the command that it waits for. */
  when: string
  /** The message to the agent; null for a job that sends none. */
  input: string | null
  paused: boolean
  nextAt: number | null
  lastAt: number | null
  /** OpenClaw's status of the last run: `ok`, `error` or `skipped`; null before the first. */
  lastStatus: string | null
}

const text = (value: unknown): string =>
  typeof value === 'string' ? value.slice(0, maxTextCharacters).toWellFormed() : ''
const time = (value: unknown) => (typeof value === 'number' && value >= 0 && value <= maxTimeMs ? value : null)

function timesOf({ kind, expr, tz, at, everyMs, command }: Record<string, unknown>): string {
  if (kind === 'cron') return text(typeof tz === 'string' ? `${expr} ${tz}` : expr)
  if (kind === 'every') return `every ${Number(everyMs) / 1000} s`
  return text(kind === 'at' ? at : [command].flat().join(' '))
}

function readJob({ id, name, enabled, schedule, payload, state, nextRunAtMs }: Record<string, unknown>): CronJob {
  const times = isObject(schedule) ? schedule : {}
  const run = isObject(state) ? state : {}
  const input = isObject(payload) ? (payload.message ?? payload.text) : null
  return {
    id: text(id),
    name: text(name),
    kind: text(times.kind),
    when: timesOf(times),
    input: typeof input === 'string' ? text(input) : null,
    paused: enabled === false,
    nextAt: time(run.nextRunAtMs ?? nextRunAtMs),
    lastAt: time(run.lastRunAtMs),
    lastStatus: typeof run.lastRunStatus === 'string' ? text(run.lastRunStatus) : null,
  }
}

/**
 * The jobs of an agent's own cron, without those of OpenClaw itself. Throws an Error for an answer that cannot be read,
 * or more than 2,000 jobs, and the errors of `call`.
 */
export async function listCronJobs(gateway: GatewayClient): Promise<CronJob[]> {
  const jobs: CronJob[] = []
  let offset = 0
  for (let page = 0; page < maxPages; page += 1) {
    const params = { includeDisabled: true, limit: jobsPerPage, offset }
    const answer = await gateway.call('cron.list', params, { timeoutMs: callTimeoutMs })
    if (!isObject(answer) || !Array.isArray(answer.jobs)) throw new Error('the gateway lists no cron jobs')
    jobs.push(...answer.jobs.filter(isObject).map(readJob))
    if (answer.hasMore !== true) return jobs.filter(({ name }) => !ownJobs.includes(name))
    const { nextOffset } = answer
    if (typeof nextOffset !== 'number' || nextOffset <= offset) break
    offset = nextOffset
  }
  throw new Error('the gateway has too many cron jobs')
}

/** When the agent's own cron next has something to do; null if it has nothing. Throws the errors of `listCronJobs`. */
export async function nextCronRun(gateway: GatewayClient): Promise<number | null> {
  const times = (await listCronJobs(gateway)).flatMap(({ paused, nextAt }) =>
    paused || nextAt === null ? [] : [nextAt],
  )
  return times.length === 0 ? null : Math.min(...times)
}

/** Pauses a job, or lets it go on. Returns it; null for an unknown id. Throws the errors of `listCronJobs`. */
export async function pauseCronJob(gateway: GatewayClient, id: string, paused: boolean): Promise<CronJob | null> {
  const find = async () => (await listCronJobs(gateway)).find((job) => job.id === id) ?? null
  if (!(await find())) return null
  await gateway.call('cron.update', { id, patch: { enabled: !paused } }, { timeoutMs: callTimeoutMs })
  return find()
}
