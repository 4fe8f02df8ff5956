import { sql } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import { createRequireBudgets } from '#budgets/check.ts'
import type { Db } from '#database/client.ts'
import { sessionEndUsers } from '#database/usage-schema.ts'
import type { Caller } from '#http/caller.ts'
import type { FindGateway, RunningGateway } from '#instances/find.ts'
import type { Logger } from '#platform/log.ts'

/** The session of a turn in an instance; `sessionKey` is the gateway's key of it. */
export interface TurnSession {
  organizationId: string
  instanceId: string
  sessionKey: string
}

/** The sender of a turn. */
interface Asker {
  caller: Pick<Caller, 'token'>
  /** The field `user` of the body. */
  user?: string | null | undefined
}

export interface Admission {
  /**
   * Finds the gateway of an instance for a turn, and wakes a sleeping one. With `waits: false` the gateway may still be
   * starting. Throws AppError `not_found`, `conflict` when the instance is not running, `budget_exceeded`, and
   * `unavailable` when it takes long to wake.
   */
  admit(asker: Asker, session: TurnSession, options?: { waits: boolean }): Promise<RunningGateway>
  /** Records the end user of a turn that begins, for the usage and the budgets of its session. */
  begin(asker: Asker, session: TurnSession): Promise<void>
}

/**
 * The end user of a turn: the one of its client token, otherwise the `user` of its body; null without one. The holder
 * of a client token cannot choose another one.
 */
export function endUserOf({ caller: { token }, user }: Asker): string | null {
  const named = (token ? token.endUser : user) ?? ''
  return named.replaceAll('\0', '').toWellFormed() || null
}

const maxKnown = 10_000
/** Another process may have recorded another end user of the session meanwhile. */
const knownMs = 60_000

export function createAdmission(db: Db, findGateway: FindGateway, log: Pick<Logger, 'warn'>): Admission {
  const requireBudgets = createRequireBudgets(db)
  const known = new LRUCache<string, string>({ max: maxKnown, ttl: knownMs })

  /**
   * Gateways do not pass the end user on. A turn without one keeps the session's last one. A failure does not fail the
   * turn.
   */
  async function recordEndUser(endUser: string | null, { organizationId, instanceId, sessionKey }: TurnSession) {
    const key = `${instanceId} ${sessionKey}`
    if (endUser === null || known.get(key) === endUser) return
    try {
      await db
        .insert(sessionEndUsers)
        .values({ organizationId, instanceId, session: sessionKey, endUser })
        .onConflictDoUpdate({
          target: [sessionEndUsers.instanceId, sessionEndUsers.session],
          set: { endUser, notedAt: sql`now()` },
        })
      known.set(key, endUser)
    } catch (err) {
      log.warn({ err, instanceId }, 'the end user of a session could not be recorded: its usage lacks it')
    }
  }

  return {
    async admit(asker, session, options) {
      const beforeWake = () => requireBudgets({ ...session, endUser: endUserOf(asker) })
      const gateway = await findGateway(session.organizationId, session.instanceId, { ...options, beforeWake })
      await beforeWake()
      return gateway
    },
    begin: (asker, session) => recordEndUser(endUserOf(asker), session),
  }
}
