import { batched } from '#database/batched.ts'
import type { HardBudget } from '#database/budget-schema.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { budgetTexts } from '#errors/budget-texts.ts'
import { budgetRefusals } from '#platform/metrics.ts'

/** A turn may start up to this long after its budget is used up: the relay then refuses its model calls. */
const cachedMs = 250
/** While this many queries run, turns wait and share the next one. */
const maxConcurrentQueries = 2

interface Turn {
  organizationId: string
  instanceId: string
  /** The gateway's key of the session. */
  sessionKey: string
  /** The end user of the turn; null for the last one of its session, if any. */
  endUser: string | null
}

/**
 * Checks the budgets of a turn before it reaches its agent. Throws AppError `budget_exceeded` when a hard budget of the
 * instance, the organization or the end user is used up. Budgets of unattended calls do not block a turn.
 */
export type RequireBudgets = (turn: Turn) => Promise<void>

/** The organizations with a used-up hard budget, or one of end users, which depends on the turn. */
const findOrganizations = `
  SELECT DISTINCT b.organization_id AS id FROM budgets b
  LEFT JOIN budget_periods p ON p.budget_id = b.id AND p.member = '' AND p.begins_at <= now() AND p.ends_at > now()
  WHERE b.organization_id = ANY ($1) AND b.mode = 'hard' AND (b.scope = 'end_user' OR p.used >= b.limit_units)`

const findUsedUp = `
  SELECT DISTINCT ON (x.place) x.place::int - 1 AS place, budget
  FROM jsonb_to_recordset($1) AS x (place int, organization uuid, instance uuid, session text, person text)
  CROSS JOIN LATERAL hard_budgets(x.organization, x.instance, coalesce(x.person, (
    SELECT end_user FROM session_end_users e WHERE e.instance_id = x.instance AND e.session = x.session
  ))) AS budget
  WHERE budget->>'scope' <> 'unattended' AND (budget->>'used')::numeric >= (budget->>'limitUnits')::numeric`

export function createRequireBudgets(db: Db): RequireBudgets {
  const readOrganizations = batched(maxConcurrentQueries, async (ids: readonly string[]) => {
    const query = { name: 'find_used_up_organizations', text: findOrganizations, values: [ids] }
    const { rows } = await db.$client.query<{ id: string }>(query)
    return ids.map((id) => rows.find((row) => row.id === id) ?? null)
  })
  const readUsedUp = batched(maxConcurrentQueries, async (keys: readonly string[]) => {
    const asked = keys.map((key, place) => {
      const [organization, instance, session, person] = JSON.parse(key) as (string | null)[]
      return { place: place + 1, organization, instance, session, person }
    })
    const query = { name: 'find_used_up_budgets', text: findUsedUp, values: [JSON.stringify(asked)] }
    const { rows } = await db.$client.query<{ place: number; budget: HardBudget }>(query)
    const found = new Map(rows.map((row) => [row.place, row.budget]))
    return keys.map((_, place) => found.get(place) ?? null)
  })
  const organizations = cachedFor(cachedMs, readOrganizations)
  const usedUp = cachedFor(cachedMs, readUsedUp)
  return async ({ organizationId, instanceId, sessionKey, endUser }) => {
    if (!(await organizations.find(organizationId))) return
    const budget = await usedUp.find(JSON.stringify([organizationId, instanceId, sessionKey, endUser]))
    if (!budget) return
    budgetRefusals.inc({ reason: 'used_up' })
    throw new AppError('budget_exceeded', budgetTexts.usedUp(budget), { doNotRetry: true })
  }
}
