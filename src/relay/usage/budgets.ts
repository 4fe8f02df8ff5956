import { batched } from '#database/batched.ts'
import type { HardBudget } from '#database/budget-schema.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import { budgetTexts } from '#errors/budget-texts.ts'
import { budgetRefusals } from '#platform/metrics.ts'
import { CallRefused } from '#relay/call.ts'

/** As long as the grant of a token, which contains the other budgets. */
const cachedMs = 250
/** While this many queries run, calls wait and share the next one. */
const maxConcurrentQueries = 2

/** A session of an instance, by the gateway's key. */
interface Session {
  instanceId: string
  session: string
}

export interface BudgetReader {
  /** The hard budgets of the end user of a session, as of the last 250 ms; none when the session has no end user. */
  ofEndUser(session: Session): Promise<readonly HardBudget[]>
  /** Whether a person has asked the instance within the last hour, through the API or a channel. Not cached. */
  wasAsked(instanceId: string): Promise<boolean>
}

const findBudgets = `
  SELECT x.place::int - 1 AS place, json_agg(budget) AS budgets
  FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS x (instance_id, session, place)
  JOIN session_end_users e ON e.instance_id = x.instance_id AND e.session = x.session
  CROSS JOIN LATERAL hard_budgets(e.organization_id, e.instance_id, e.end_user) AS budget
  WHERE budget->>'scope' = 'end_user'
  GROUP BY 1`

export function createBudgetReader(db: Db): BudgetReader {
  const readBudgets = batched(maxConcurrentQueries, async (sessions: readonly Session[]) => {
    const values = [sessions.map(({ instanceId }) => instanceId), sessions.map(({ session }) => session)]
    const query = { name: 'find_user_budgets', text: findBudgets, values }
    const { rows } = await db.$client.query<{ place: number; budgets: HardBudget[] }>(query)
    const found = new Map(rows.map((row) => [row.place, row.budgets]))
    return sessions.map((_, place) => found.get(place) ?? [])
  })
  const readAsked = batched(maxConcurrentQueries, async (ids: readonly string[]) => {
    const text =
      'SELECT was_asked(id, now()) AS asked FROM unnest($1::uuid[]) WITH ORDINALITY AS x (id, place) ORDER BY place'
    const { rows } = await db.$client.query<{ asked: boolean }>({ name: 'was_asked', text, values: [ids] })
    return rows.map(({ asked }) => asked)
  })
  const known = cachedFor<readonly HardBudget[]>(cachedMs, (key) => {
    const [instanceId = '', session = ''] = JSON.parse(key) as string[]
    return readBudgets({ instanceId, session })
  })
  return {
    ofEndUser: async ({ instanceId, session }) => (await known.find(JSON.stringify([instanceId, session]))) ?? [],
    wasAsked: readAsked,
  }
}

export const isUsedUp = ({ used, limitUnits }: HardBudget): boolean => used >= limitUnits

/** Throws CallRefused when one of the budgets is used up. */
export function requireLeft(budgets: readonly HardBudget[]): void {
  const usedUp = budgets.find(isUsedUp)
  if (!usedUp) return
  budgetRefusals.inc({ reason: usedUp.scope === 'unattended' ? 'unattended' : 'used_up' })
  throw new CallRefused(429, budgetTexts.usedUp(usedUp))
}

/** Whether a budget refuses models without a known price. */
export const needsPrice = ({ unit, unpricedPrice }: HardBudget): boolean => unit === 'usd' && unpricedPrice === null

/** Throws CallRefused when one of the budgets refuses models without a known price. */
export function requirePrice(budgets: readonly HardBudget[], model: string | null): void {
  const refusing = budgets.find(needsPrice)
  if (!refusing) return
  budgetRefusals.inc({ reason: 'unpriced' })
  throw new CallRefused(400, budgetTexts.unpriced(refusing, model))
}
