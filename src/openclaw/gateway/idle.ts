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
 * It takes no request while it looks, for some milliseconds. Also ends a suspension that began with the same id.
 */
export async function findWork(gateway: GatewayClient, requestId = newId()): Promise<Work[]> {
  const { work, end } = await suspend(gateway, requestId)
  await end()
  return work
}

/**
 * Suspends an idle gateway, which then takes no request, until `findWork` gets the same id, or at most two minutes of
 * its own time. Returns false, with the gateway not suspended, if it works or `act` returns false or throws.
 */
export async function suspendFor(
  gateway: GatewayClient,
  requestId: string,
  act: () => Promise<boolean>,
): Promise<boolean> {
  const { work, end } = await suspend(gateway, requestId)
  if (work.length > 0) return false
  let isToLast = false
  try {
    isToLast = await act()
  } finally {
    if (!isToLast) await end()
  }
  return isToLast
}

interface Work {
  kind: string
  count: number
}

async function suspend(gateway: GatewayClient, requestId: string): Promise<{ work: Work[]; end(): Promise<unknown> }> {
  const answer = await gateway.call('gateway.suspend.prepare', { requestId }, { timeoutMs: callTimeoutMs })
  if (!isObject(answer)) throw new Error('the gateway does not say whether it is idle')
  if (answer.status !== 'ready') {
    const work = objects(answer.blockers).map(({ kind, count }) => ({ kind: String(kind), count: Number(count) }))
    return { work: work.length > 0 ? work : [{ kind: String(answer.status), count: 1 }], end: async () => {} }
  }
  const { suspensionId } = answer
  return {
    work: [],
    end: () => gateway.call('gateway.suspend.resume', { suspensionId }, { timeoutMs: callTimeoutMs }),
  }
}
