import { randomUUID } from 'node:crypto'
import { eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { ephemeralSessions } from '#database/schema.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { atMost } from '#platform/deadline.ts'
import type { Logger } from '#platform/log.ts'

/** Longer than any turn: a session whose process was lost is deleted then. */
const latestEnd = sql`now() + interval '20 minutes'`
/** A turn that was broken off writes its last to the session after we have let go of it. */
const atEnd = sql`now() + interval '3 seconds'`
/** Of all instances, and of one: a busy one leaves the others their turn. */
const batch = 200
const batchOfInstance = 10
/** A gateway takes a second or two for each. */
const atOnce = 4
/** Slower gateways are not waited for. */
const roundMs = 5000

interface Place {
  organizationId: string
  instanceId: string
}

/** A key for a session of one call, which is written down before anything comes to be there. */
export async function createEphemeralSession(db: Db, place: Place): Promise<string> {
  // No id of the API has such a key, so the session is neither listed nor reached.
  const sessionKey = `c-${randomUUID().replaceAll('-', '')}`
  await db.insert(ephemeralSessions).values({ ...place, sessionKey, dueAt: latestEnd })
  return sessionKey
}

/** The turn is over: a worker may delete the session. */
export const endEphemeralSession = (db: Db, sessionKey: string) =>
  db.update(ephemeralSessions).set({ dueAt: atEnd }).where(eq(ephemeralSessions.sessionKey, sessionKey))

interface Due extends Record<string, unknown> {
  session_key: string
  organization_id: string
  instance_id: string
}

/**
 * Answers a round that deletes the sessions that are due, at their gateways and then here: some of each instance, each
 * instance by itself. One that cannot be reached is tried again a minute later, for as long as there is the instance:
 * nothing is forgotten by a crash or a stop.
 */
export function createEphemeralSessionCleanup(
  db: Db,
  askGateway: AskGateway,
  log: Pick<Logger, 'warn'>,
): () => Promise<void> {
  /** Instances whose sessions are being deleted, at the latest until the asking of a gateway ends. */
  const busy = new Set<string>()

  async function deleteOf(sessions: readonly Due[]): Promise<void> {
    const { organization_id, instance_id } = sessions[0]!
    const warn = (err: unknown) =>
      log.warn({ err, instanceId: instance_id }, 'a passing session is still to be deleted')
    const left = sessions.values()
    await askGateway(organization_id, instance_id, async (gateway) => {
      const deleteLeft = async () => {
        for (const { session_key: key } of left) {
          try {
            await gateway.call('sessions.delete', { key, deleteTranscript: true })
            await db.delete(ephemeralSessions).where(eq(ephemeralSessions.sessionKey, key))
          } catch (error) {
            warn(error)
          }
        }
      }
      await Promise.all(Array.from({ length: atOnce }, deleteLeft))
    }).catch(warn)
  }

  return async () => {
    await db.execute(
      sql`DELETE FROM passing_sessions p USING instances i WHERE i.id = p.instance_id AND i.desired_state = 'terminated'`,
    )
    // Whoever takes them has a minute: nobody else does meanwhile.
    const { rows } = await db.execute<Due>(sql`
      UPDATE passing_sessions SET due_at = now() + interval '1 minute' WHERE session_key IN (
        SELECT p.session_key FROM passing_sessions p JOIN (
          SELECT session_key, row_number() OVER (PARTITION BY instance_id ORDER BY due_at) AS place FROM passing_sessions
          WHERE due_at < now() AND instance_id <> ALL(${sql.param([...busy])}::uuid[])
        ) due USING (session_key)
        WHERE p.due_at < now() AND due.place <= ${batchOfInstance} ORDER BY due.place, p.due_at LIMIT ${batch} FOR UPDATE OF p SKIP LOCKED)
      RETURNING session_key, organization_id, instance_id`)
    const asked = [...Map.groupBy(rows, ({ instance_id }) => instance_id)].map(async ([instanceId, sessions]) => {
      busy.add(instanceId)
      await deleteOf(sessions).finally(() => busy.delete(instanceId))
    })
    await atMost(roundMs, Promise.all(asked))
  }
}
