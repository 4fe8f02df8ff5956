import { randomUUID } from 'node:crypto'
import { eq, sql } from 'drizzle-orm'
import pMap from 'p-map'
import pTimeout from 'p-timeout'
import type { Db } from '#database/client.ts'
import { ephemeralSessions } from '#database/response-schema.ts'
import { AppError } from '#errors/app-error.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import type { Logger } from '#platform/log.ts'

/** Age after which the session of a killed process is deleted: longer than any turn. */
const latestDueAt = sql`now() + interval '20 minutes'`
/** Delay after a turn: the gateway of a turn that broke off still writes to its session. */
const dueAfterTurn = sql`now() + interval '3 seconds'`
/** Maximum sessions per run, in total and per instance, so that a busy instance does not delay the others. */
const maxSessions = 200
const maxSessionsOfInstance = 10
/** Concurrent deletions at one gateway, which needs one or two seconds for each. */
const concurrencyOfInstance = 4
/**
 * Maximum due sessions kept per instance: otherwise a gateway that refuses every deletion would fill the table.
 * Forgotten ones stay in the agent's own files.
 */
const maxDueOfInstance = 1000
/** Maximum sessions that one run forgets. */
const maxForgotten = 1000
/** Time, in ms, that a run waits for its gateways. */
const maxRunMs = 5000

interface InstanceRef {
  organizationId: string
  instanceId: string
}

/** Returns the key of a session for one call. Its row is in the database before the gateway creates the session. */
export async function createEphemeralSession(db: Db, instance: InstanceRef): Promise<string> {
  // No session id of the API has such a key, so clients can neither list nor use the session.
  const sessionKey = `c-${randomUUID().replaceAll('-', '')}`
  await db.insert(ephemeralSessions).values({ ...instance, sessionKey, dueAt: latestDueAt })
  return sessionKey
}

/** Marks a session for deletion after its turn, in the background. */
export function endEphemeralSession(db: Db, sessionKey: string, log: Pick<Logger, 'warn'>): void {
  db.update(ephemeralSessions)
    .set({ dueAt: dueAfterTurn })
    .where(eq(ephemeralSessions.sessionKey, sessionKey))
    .catch((err: unknown) =>
      log.warn({ err }, 'an ephemeral session could not be marked for deletion; it is deleted later'),
    )
}

/** Forgets the oldest due sessions of instances with too many. The sessions of running turns are not due. */
const forgetSurplus = (db: Db) =>
  db.execute(sql`
    DELETE FROM passing_sessions WHERE session_key IN (
      SELECT session_key FROM (
        SELECT session_key, row_number() OVER (PARTITION BY instance_id ORDER BY due_at DESC) AS rank
        FROM passing_sessions WHERE due_at < now() + interval '1 minute'
      ) due WHERE rank > ${maxDueOfInstance} LIMIT ${maxForgotten})`)

interface DueSessions extends Record<string, unknown> {
  instance_id: string
  organization_id: string
  session_keys: string[]
}

/** Claims due sessions. They become due again a minute later, so that no other process claims them meanwhile. */
const takeDue = (db: Db, exceptInstanceIds: readonly string[]) =>
  db.execute<DueSessions>(sql`
    WITH taken AS (
      UPDATE passing_sessions SET due_at = now() + interval '1 minute' WHERE session_key IN (
        SELECT p.session_key FROM passing_sessions p JOIN (
          SELECT session_key, row_number() OVER (PARTITION BY instance_id ORDER BY due_at) AS rank
          FROM passing_sessions
          WHERE due_at < now() AND instance_id <> ALL(${sql.param([...exceptInstanceIds])}::uuid[])
        ) due USING (session_key)
        WHERE p.due_at < now() AND due.rank <= ${maxSessionsOfInstance}
        ORDER BY due.rank, p.due_at LIMIT ${maxSessions} FOR UPDATE OF p SKIP LOCKED)
      RETURNING session_key, organization_id, instance_id)
    SELECT instance_id, organization_id, array_agg(session_key) AS session_keys
    FROM taken GROUP BY instance_id, organization_id`)

/**
 * Returns a periodic task that deletes due sessions at their gateways and then in the database. It asks all gateways at
 * the same time. A failed deletion is retried every minute until the instance is terminated, also after a crash. It
 * keeps the latest 1,000 sessions of each instance.
 */
export function createEphemeralSessionCleanup(
  db: Db,
  askGateway: AskGateway,
  log: Pick<Logger, 'warn'>,
): () => Promise<void> {
  /** Instances with a pending request to their gateway, which may outlast a run. */
  const busyInstances = new Set<string>()

  async function deleteSessions({ organization_id, instance_id, session_keys }: DueSessions): Promise<void> {
    const warn = (err: unknown) => {
      if (err instanceof AppError && err.kind === 'conflict') return // the instance does not run
      log.warn({ err, instanceId: instance_id }, 'an ephemeral session could not be deleted yet')
    }
    busyInstances.add(instance_id)
    try {
      await askGateway(organization_id, instance_id, async (gateway) => {
        const deleteSession = async (key: string) => {
          try {
            await gateway.call('sessions.delete', { key, deleteTranscript: true })
            await db.delete(ephemeralSessions).where(eq(ephemeralSessions.sessionKey, key))
          } catch (error) {
            warn(error)
          }
        }
        await pMap(session_keys, deleteSession, { concurrency: concurrencyOfInstance })
      })
    } catch (error) {
      warn(error)
    } finally {
      busyInstances.delete(instance_id)
    }
  }

  return async () => {
    await db.execute(sql`
      DELETE FROM passing_sessions p USING instances i WHERE i.id = p.instance_id AND i.desired_state = 'terminated'`)
    await forgetSurplus(db)
    const { rows } = await takeDue(db, [...busyInstances])
    await pTimeout(Promise.all(rows.map(deleteSessions)), { milliseconds: maxRunMs, message: false })
  }
}
