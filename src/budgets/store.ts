import { eq, inArray, sql } from 'drizzle-orm'
import { budgets, unitsPerUsd } from '#database/budget-schema.ts'
import type { Db } from '#database/client.ts'
import { deleteInBatches } from '#database/delete-batches.ts'
import { AppError } from '#errors/app-error.ts'
import { shownAmount } from '#errors/budget-texts.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { newId } from '#platform/ids.ts'
import { requireTimeZone } from '#platform/time-zone.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type NewBudget, type ShownBudget, stateOf } from './schemas.ts'

/** The owner of budgets: an instance of the organization, or the organization itself. */
export interface BudgetOwner {
  organizationId: string
  /** Equal to `organizationId` for the organization. */
  id: string
}

type Row = typeof budgets.$inferSelect

/** PostgreSQL's code of a time zone that it does not know. */
const unknownTimeZone = '22023'

const valuesOf = ({ organizationId, id }: BudgetOwner, budget: NewBudget, position: number) => ({
  organizationId,
  ownerId: id,
  scope: budget.scope ?? ('total' as const),
  name: budget.name,
  unit: (['tokens', 'usd', 'calls'] as const).find((unit) => budget.limit[unit] !== undefined) ?? 'tokens',
  limitUnits: budget.limit.tokens ?? budget.limit.calls ?? Math.round((budget.limit.usd ?? 0) * unitsPerUsd),
  period: budget.per,
  timeZone: budget.time_zone ?? 'UTC',
  mode: budget.mode ?? ('hard' as const),
  unpricedPrice: budget.unpriced_price === undefined ? 20 : budget.unpriced_price,
  position,
})
type Values = ReturnType<typeof valuesOf>

/** Whether the use of a budget still fits its definition. */
const countsTheSame = (row: Row, { scope, unit, period, timeZone }: Values): boolean =>
  row.scope === scope && row.unit === unit && row.period === period && row.timeZone === timeZone

const isSame = (row: Row, values: Values): boolean =>
  Object.entries(values).every(([name, value]) => row[name as keyof Row] === value)

async function requireUsable(tx: Db, wanted: readonly Values[]): Promise<void> {
  const names = wanted.map(({ name }) => name)
  const twice = names.find((name, index) => names.indexOf(name) !== index)
  if (twice !== undefined) throw new AppError('invalid_value', texts.budgetTwice(twice), { param: 'budgets' })
  for (const { timeZone } of wanted) {
    requireTimeZone(timeZone, 'budgets')
    await tx.execute(sql`SELECT now() AT TIME ZONE ${timeZone}`).catch((error: { cause?: { code?: string } }) => {
      if (error.cause?.code !== unknownTimeZone) throw error
      throw new AppError('invalid_value', texts.unknownTimeZone, { param: 'budgets' })
    })
  }
}

/**
 * Replaces the budgets of an owner, in the transaction of `tx`. A budget that keeps its name, scope, unit, period and
 * time zone keeps its use; any other one begins at zero. Records the change. Throws AppError `invalid_value`.
 */
export async function setBudgets(tx: Db, owner: BudgetOwner, budgetList: readonly NewBudget[] | null): Promise<void> {
  const wanted = (budgetList ?? []).map((budget, position) => valuesOf(owner, budget, position))
  await requireUsable(tx, wanted)
  const before = await tx.select().from(budgets).where(eq(budgets.ownerId, owner.id)).for('update')
  const kept = before.filter((row) => wanted.some((one) => one.name === row.name && countsTheSame(row, one)))
  const gone = before.filter((row) => !kept.includes(row))
  let hasChanged = gone.length > 0
  const otherLimits: { id: string; limitUnits: number }[] = []
  if (gone.length > 0) {
    const ids = gone.map(({ id }) => id)
    await tx.delete(budgets).where(inArray(budgets.id, ids))
  }
  for (const values of wanted) {
    const row = kept.find(({ name }) => name === values.name)
    if (row && isSame(row, values)) continue
    hasChanged = true
    if (!row) {
      await tx.insert(budgets).values({ id: newId(), ...values })
      continue
    }
    await tx.update(budgets).set(values).where(eq(budgets.id, row.id))
    if (row.limitUnits !== values.limitUnits) otherLimits.push({ id: row.id, limitUnits: values.limitUnits })
  }
  // In the order in which calls lock the use of budgets.
  for (const { id, limitUnits } of otherLimits.sort((a, b) => (a.id < b.id ? -1 : 1)))
    await recordReached(tx, id, limitUnits)
  if (!hasChanged) return
  await recordEvent(tx, {
    organizationId: owner.organizationId,
    instanceId: owner.id === owner.organizationId ? null : owner.id,
    type: 'budget.changed',
    reason: wanted.map(shownBudget).join('; ') || 'none',
  })
}

const counted = { total: '', end_user: ' by each end user', unattended: ' of each agent, unattended' } as const
const shownBudget = ({ name, scope, unit, limitUnits, period, mode }: Values): string =>
  `${name}: ${shownAmount(unit, limitUnits)} ${period === 'hour' ? 'an' : 'a'} ${period}${counted[scope]}, ${mode}`

/**
 * With another limit, the use is another share of it: records the threshold reached, so that only higher ones write
 * events.
 */
const recordReached = (tx: Db, id: string, limitUnits: number) =>
  tx.execute(sql`
    UPDATE budget_periods SET noted_percent = coalesce((
      SELECT max(level) FROM unnest(ARRAY[50, 80, 100]) AS level WHERE used::numeric * 100 >= ${limitUnits}::numeric * level
    ), 0)
    WHERE budget_id = ${id} AND ends_at > now()`)

interface Counted extends Record<string, unknown> {
  owner_id: string
  name: string
  scope: Row['scope']
  unit: Row['unit']
  limit_units: string
  period: Row['period']
  time_zone: string
  mode: Row['mode']
  unpriced_price: string | null
  used: string
  ends_ms: string
}

/** The current budgets of owners, in order. */
export async function readBudgets(db: Db, ownerIds: readonly string[]): Promise<Map<string, ShownBudget[]>> {
  const found = new Map<string, ShownBudget[]>(ownerIds.map((id) => [id, []]))
  if (ownerIds.length === 0) return found
  const { rows } = await db.execute<Counted>(sql`
    SELECT b.owner_id, b.name, b.scope, b.unit, b.limit_units, b.period, b.time_zone, b.mode, b.unpriced_price,
      (extract(epoch FROM now_in.ends_at) * 1000)::bigint AS ends_ms,
      coalesce((
        SELECT max(used) FROM budget_periods p WHERE p.budget_id = b.id AND p.begins_at = now_in.begins_at), 0) AS used
    FROM budgets b
    CROSS JOIN LATERAL budget_period(b.period, b.time_zone, now()) AS now_in
    WHERE ${inArray(sql`b.owner_id`, [...ownerIds])}
    ORDER BY b.owner_id, b.position`)
  for (const row of rows) found.get(row.owner_id)?.push(shown(row))
  return found
}

/** The budgets of one owner, from `readBudgets`. */
export const readOwnBudgets = async (db: Db, ownerId: string): Promise<ShownBudget[]> =>
  (await readBudgets(db, [ownerId])).get(ownerId) ?? []

function shown(row: Counted): ShownBudget {
  const limitUnits = Number(row.limit_units)
  const used = Number(row.used)
  const amount = (units: number) => (row.unit === 'usd' ? units / unitsPerUsd : units)
  return {
    name: row.name,
    scope: row.scope,
    limit: { [row.unit]: amount(limitUnits) },
    per: row.period,
    time_zone: row.time_zone,
    mode: row.mode,
    unpriced_price: row.unpriced_price === null ? null : Number(row.unpriced_price),
    used: amount(used),
    remaining: amount(Math.max(0, limitUnits - used)),
    resets_at: toMicroseconds(new Date(Number(row.ends_ms))),
    state: stateOf(used, limitUnits),
  }
}

/** Deletes the use of periods that ended a week ago. */
export const deleteOldPeriods = async (db: Db): Promise<void> =>
  void (await db.execute(sql`DELETE FROM budget_periods WHERE ends_at < now() - interval '7 days'`))

/** Deletes the budgets of an organization. */
export const deleteBudgetsOf = (db: Db, organizationId: string, signal?: AbortSignal): Promise<void> =>
  deleteInBatches(db, budgets, eq(budgets.organizationId, organizationId), { signal })
