import { sql } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import { createTurnBudgets } from '#budgets/check.ts'
import type { Db } from '#database/client.ts'
import { sessionEndUsers } from '#database/usage-schema.ts'
import type { Caller } from '#http/auth.ts'
import type { FindGateway, RunningGateway } from '#instances/find.ts'
import type { Logger } from '#platform/log.ts'

/** The session of an instance in which a turn runs; `sessionKey` is the gateway's key of it. */
export interface TurnSession {
  organizationId: string
  instanceId: string
  sessionKey: string
}

export interface Admission {
  /**
   * Finds the gateway of an instance for a turn. Throws AppError `not_found`, `conflict` when the instance is not
   * running, and `budget_exceeded`.
   */
  admit(caller: Caller, instanceId: string): Promise<RunningGateway>
  /** Records who asks, just before the agent is asked: the end user of a client token, and what budgets need. */
  begin(caller: Caller, session: TurnSession): Promise<void>
}

const maxKnown = 10_000
/** Another process may have recorded another end user of the session meanwhile. */
const knownMs = 60_000

export function createAdmission(db: Db, findGateway: FindGateway, log: Pick<Logger, 'warn'>): Admission {
  const budgets = createTurnBudgets(db)
  const known = new LRUCache<string, string>({ max: maxKnown, ttl: knownMs })

  /** Gateways do not pass the end user on, and usage needs it. A failure costs no turn. */
  async function recordEndUser({ token }: Caller, { organizationId, instanceId, sessionKey }: TurnSession) {
    const endUser = token?.endUser?.replaceAll('\0', '').toWellFormed() ?? ''
    const key = `${instanceId} ${sessionKey}`
    if (endUser === '' || known.get(key) === endUser) return
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
    async admit({ organizationId, keyId }, instanceId) {
      const gateway = await findGateway(organizationId, instanceId)
      await budgets.require({ organizationId, keyId, instanceId })
      return gateway
    },
    async begin(caller, session) {
      await recordEndUser(caller, session)
      await budgets.begin({ ...session, keyId: caller.keyId })
    },
  }
}
