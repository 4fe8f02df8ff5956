import { isObject } from '#openclaw/json.ts'
import { newId } from '#platform/ids.ts'
import type { GatewayClient } from './gateway.ts'

const callTimeoutMs = 10_000
const jobsPerPage = 200
const maxPages = 10
/** Far beyond any calendar, and within the range of PostgreSQL's timestamps. */
const maxTimeMs = 8.64e15
/** Jobs of OpenClaw itself, which may wait until something else wakes the agent. */
const ownJobs = ['heartbeat-main', 'skill-collection-review-main']

const objects = (value: unknown) => (Array.isArray(value) ? value.filter(isObject) : [])

/** Whether a gateway has a chat channel that is configured and not disabled: a message could not wake its agent. */
export async function hasChannels(gateway: GatewayClient): Promise<boolean> {
  const answer = await gateway.call('channels.status', {}, { timeoutMs: callTimeoutMs })
  const channels = isObject(answer) && isObject(answer.channelAccounts) ? answer.channelAccounts : {}
  return Object.values(channels)
    .flatMap(objects)
    .some(({ configured, running, connected, stateReason }) => {
      if (running === true || connected === true) return true
      return configured === true && stateReason !== 'disabled'
    })
}

/**
 * When the agent's own cron next has something to do, in ms since 1970; null if it has nothing. Throws an Error for an
 * answer that cannot be read, or more than 2,000 jobs.
 */
export async function nextCronRun(gateway: GatewayClient): Promise<number | null> {
  let next = Number.POSITIVE_INFINITY
  let offset = 0
  for (let page = 0; page < maxPages; page += 1) {
    const answer = await gateway.call('cron.list', { limit: jobsPerPage, offset }, { timeoutMs: callTimeoutMs })
    if (!isObject(answer) || !Array.isArray(answer.jobs)) throw new Error('the gateway lists no cron jobs')
    for (const { name, enabled, state, nextRunAtMs } of objects(answer.jobs)) {
      if (enabled === false || ownJobs.includes(String(name))) continue
      const at = (isObject(state) ? state.nextRunAtMs : null) ?? nextRunAtMs
      if (typeof at === 'number') next = Math.min(next, at)
    }
    if (answer.hasMore !== true) return next <= maxTimeMs ? Math.max(0, next) : null
    const { nextOffset } = answer
    if (typeof nextOffset !== 'number' || nextOffset <= offset) break
    offset = nextOffset
  }
  throw new Error('the gateway has too many cron jobs')
}

/**
 * The work of a gateway: kinds and counts, because other texts may be those of a tenant. Empty when it is idle.
 * It takes no request while it looks, for some milliseconds.
 */
export async function findWork(gateway: GatewayClient): Promise<{ kind: string; count: number }[]> {
  const answer = await gateway.call('gateway.suspend.prepare', { requestId: newId() }, { timeoutMs: callTimeoutMs })
  if (!isObject(answer)) throw new Error('the gateway does not say whether it is idle')
  if (answer.status !== 'ready') {
    const work = objects(answer.blockers).map(({ kind, count }) => ({ kind: String(kind), count: Number(count) }))
    return work.length > 0 ? work : [{ kind: String(answer.status), count: 1 }]
  }
  const { suspensionId } = answer
  await gateway.call('gateway.suspend.resume', { suspensionId }, { timeoutMs: callTimeoutMs })
  return []
}
