import { sql } from 'drizzle-orm'
import { LRUCache } from 'lru-cache'
import { batched } from '#database/batched.ts'
import type { budgets } from '#database/budget-schema.ts'
import type { Db } from '#database/client.ts'
import { budgetTexts } from '#platform/budget-texts.ts'
import { AppError } from '#platform/errors.ts'
import { budgetRefusals } from '#platform/metrics.ts'

/** For so long a turn may begin after its budget was used up: the relay then refuses its calls of models. */
const cachedMs = 250
const maxCached = 10_000
/** While this many queries run, turns wait and share the next one. */
const maxConcurrentQueries = 2

interface Turn {
  organizationId: string
  keyId: string
  instanceId: string
  /** The gateway's key of the session. */
  sessionKey: string
}

/** Checks the budgets of turns before they reach their agent. */
export interface TurnBudgets {
  /**
   * Throws AppError `budget_exceeded` when a hard budget is used up: of the key, the instance, its labels or the
   * organization.
   */
  require(turn: Omit<Turn, 'sessionKey'>): Promise<void>
  /**
   * Notes that somebody asked the agent, to five minutes, and the key of a turn that begins, where keys have budgets:
   * the calls of models in its session are then of this key. Turns of a session begin one after the other.
   */
  begin(turn: Turn): Promise<void>
}

type Row = typeof budgets.$inferSelect

interface Found extends Record<string, unknown> {
  organization_id: string
  owner_id: string
  scope: Row['scope']
  name: string
  selector: Record<string, string>
  unit: Row['unit']
  limit_units: string
  period: Row['period']
  time_zone: string
  is_used_up: boolean
  ends_ms: string
}

/** Of organizations: the budgets of keys, and the hard ones that are used up. */
const findBudgets = `
  SELECT b.organization_id, b.owner_id, b.scope, b.name, b.selector, b.unit, b.limit_units, b.period, b.time_zone,
    b.mode = 'hard' AND coalesce(p.used >= b.limit_units, false) AS is_used_up,
    (extract(epoch FROM p.ends_at) * 1000)::bigint AS ends_ms
  FROM budgets b
  LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.begins_at <= now() AND p.ends_at > now()
  WHERE b.organization_id = ANY ($1) AND (b.scope = 'key' OR (b.mode = 'hard' AND p.used >= b.limit_units))
  ORDER BY b.scope, b.position`

/** For so long another turn of an instance is not noted again. */
const notedMs = 5 * 60_000

export function createTurnBudgets(db: Db): TurnBudgets {
  const noted = new LRUCache<string, true>({ max: maxCached, ttl: notedMs })
  const find = batched(maxConcurrentQueries, async (organizationIds: readonly string[]) => {
    const { rows } = await db.$client.query<Found>({
      name: 'find_budgets',
      text: findBudgets,
      values: [organizationIds],
    })
    return organizationIds.map((id) => rows.filter((row) => row.organization_id === id))
  })
  const found = new LRUCache<string, readonly Found[]>({
    max: maxCached,
    ttl: cachedMs,
    fetchMethod: (organizationId) => find(organizationId),
  })
  const budgetsOf = async (organizationId: string) => (await found.fetch(organizationId)) ?? []

  async function hasLabels(instanceId: string, selector: Record<string, string>): Promise<boolean> {
    if (Object.keys(selector).length === 0) return true
    const { rowCount } = await db.execute(sql`
      SELECT FROM instances WHERE id = ${instanceId} AND metadata @> ${JSON.stringify(selector)}::jsonb`)
    return (rowCount ?? 0) > 0
  }

  async function noteTurn(instanceId: string): Promise<void> {
    if (noted.has(instanceId)) return
    noted.set(instanceId, true)
    await db.execute(sql`
      INSERT INTO instance_turns (instance_id) VALUES (${instanceId})
      ON CONFLICT (instance_id) DO UPDATE SET asked_at = now()`)
  }

  return {
    async require({ organizationId, keyId, instanceId }) {
      const owners = [organizationId, instanceId, keyId]
      for (const budget of await budgetsOf(organizationId)) {
        if (!budget.is_used_up || !owners.includes(budget.owner_id)) continue
        if (!(await hasLabels(instanceId, budget.selector))) continue
        const { name, scope, unit, period, time_zone: timeZone } = budget
        const isOfLabels = Object.keys(budget.selector).length > 0
        const endsAt = new Date(Number(budget.ends_ms))
        const text = budgetTexts.usedUp(
          { name, scope, isOfLabels, unit, period, timeZone },
          Number(budget.limit_units),
          endsAt,
        )
        budgetRefusals.inc({ reason: 'used_up' })
        throw new AppError('budget_exceeded', text, { doNotRetry: true })
      }
    },
    async begin({ organizationId, keyId, instanceId, sessionKey: session }) {
      await noteTurn(instanceId)
      if (!(await budgetsOf(organizationId)).some(({ scope }) => scope === 'key')) return
      await db.execute(sql`
        INSERT INTO session_keys (organization_id, instance_id, session, key_id)
        VALUES (${organizationId}, ${instanceId}, ${session}, ${keyId})
        ON CONFLICT (instance_id, session) DO UPDATE SET key_id = excluded.key_id, noted_at = now()`)
    },
  }
}
