import { isObject } from '#openclaw/json.ts'
import { newId } from '#platform/ids.ts'
import type { GatewayClient } from './gateway.ts'

const callTimeoutMs = 10_000

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
