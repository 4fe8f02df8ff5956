import { sql } from 'drizzle-orm'
import { ephemeralSessions } from '#database/response-schema.ts'
import { unsealToken } from '#instances/row.ts'
import { poolOrganizationId, warmSessionKey } from '#instances/warm-pool.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { beginRun, waitForRun } from '#openclaw/gateway/runs.ts'
import { newId } from '#platform/ids.ts'
import { done, type Step } from './step.ts'

const connectTimeoutMs = 30_000
/** A first turn takes 3 to 7 s of a processor. */
const turnSeconds = 120
const waits = 4 // of half a minute each

/**
 * Gives a warm instance its first turn, which loads what a first turn loads. The relay refuses its model call, which
 * makes no difference to the turns that follow. The session is deleted after the instance has been given to a customer.
 * An instance whose turn cannot be run is warm all the same, and slower. Does nothing for the instances of customers.
 */
export const warmUp: Step = async ({ db, vault, sandboxes, lease, log, signal }) => {
  const { instance } = lease
  const { id: instanceId, organizationId } = instance
  if (organizationId !== poolOrganizationId || instance.readyAt !== null) return done
  const { endpoint } = await sandboxes.observe(instanceId, signal)
  if (!endpoint) return done
  const sessionKey = warmSessionKey(instanceId)
  await db
    .insert(ephemeralSessions)
    .values({ sessionKey, instanceId, organizationId, dueAt: sql`'infinity'` as never })
    .onConflictDoNothing()
  try {
    const gateway = await connectGateway(endpoint, unsealToken(vault, instance), {
      signal,
      timeoutMs: connectTimeoutMs,
    })
    try {
      // The first reading of the configuration takes a second, the next ones some milliseconds.
      await gateway.call('config.get')
      const runId = newId()
      await beginRun(gateway, runId, { message: 'Warm up.', sessionKey, timeout: turnSeconds })
      for (let wait = 0; wait < waits && !(await waitForRun(gateway, runId)); wait += 1) signal.throwIfAborted()
    } finally {
      gateway.close()
    }
  } catch (err) {
    signal.throwIfAborted()
    log.warn({ err }, 'a warm instance had no first turn')
  }
  return done
}
