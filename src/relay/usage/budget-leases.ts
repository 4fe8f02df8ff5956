import { eq } from 'drizzle-orm'
import pTimeout from 'p-timeout'
import { budgetLeases } from '#database/budget-schema.ts'
import type { Db } from '#database/client.ts'
import { budgetTexts } from '#platform/budget-texts.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { budgetRefusals } from '#platform/metrics.ts'
import type { GrantedBudget } from '#relay/budget.ts'
import { CallRefused } from '#relay/call.ts'
import { type CallAmount, unitsOf } from './caps.ts'

/** A lease that no call has used for so long is given back, so that other relays can use it. */
const renewEveryMs = 2000
/** Leases count for 20 s: those with open calls are renewed sooner. */
const renewAfterMs = 6000
const statementTimeoutMs = 5000
/** For so long a used-up budget refuses calls without another look. */
const refusedMs = 250
/** Budgets of one statement: they are locked together. */
const batchSize = 100
const retryAfterSeconds = 2

/** What a call has reserved in its budgets. */
export interface Reservation {
  /** Gives it back, and counts what the call has used; null counts nothing. */
  end(used: readonly CallAmount[] | null): void
}

export interface BudgetLeases {
  /**
   * Reserves what a call may use in all its budgets. Throws CallRefused when one is used up, or is taken by calls that
   * run, or cannot be checked and refuses calls then.
   */
  reserve(budgets: readonly GrantedBudget[], cap: CallAmount): Promise<Reservation>
  /**
   * What becomes of a call whose check has failed: it passes when all its budgets allow calls then. Throws CallRefused
   * otherwise, and the error if it is one already.
   */
  tolerate(budgets: readonly GrantedBudget[], error: unknown): void
  /** Gives all leases back. */
  close(): Promise<void>
}

/** What this process may let its calls use of a budget in a period. In the units of the budget. */
interface Lease {
  revision: number
  units: number
  /** What open calls have reserved. */
  open: number
  /** What calls have used that ended since the lease was made. */
  used: number
  /** By the monotonic clock. */
  endsAt: number
  leasedAt: number
  wasUsed: boolean
  /** Whether a statement makes another lease: meanwhile no call is let through. */
  isRenewed: boolean
  usedUp: { message: string; until: number } | null
}

interface Waiting {
  budgets: readonly GrantedBudget[]
  cap: CallAmount
  resolve(reservation: Reservation): void
  reject(error: Error): void
}

interface Leased {
  id: string
  lease: string
  used: string
  limit_units: string
  ends_at: Date
  ms_left: number
}

/**
 * Checks hard budgets in memory, within leases of what is left of them. A statement is needed only when a lease has no
 * room, which is seldom until a budget is nearly used up: then each call needs one. A call is let through while
 * anything is left that neither calls have used nor relays have leased. So a budget is exceeded by less than what one
 * call may use, unless calls use more than they have reserved. What a killed relay has leased is free again after 20 s.
 */
export function createBudgetLeases(db: Db, processId: string, log: Logger): BudgetLeases {
  const leases = new Map<string, Lease>()
  const waiting: Waiting[] = []
  const renewals = new Set<string>()
  const outage = logFirstAndRecovery(log, 'budgets cannot be checked', 'budgets are checked again')
  let isAsking = false

  /** The lease of a budget as it is now; undefined without one for this period. */
  function leaseOf({ id, revision }: GrantedBudget): Lease | undefined {
    const lease = leases.get(id)
    if (!lease || lease.endsAt <= performance.now()) return undefined
    return lease.revision === revision ? lease : undefined
  }

  function hold(budgets: readonly GrantedBudget[], cap: CallAmount): Reservation {
    const held = budgets.flatMap((budget) => {
      const lease = leases.get(budget.id)
      return lease ? [{ budget, lease, units: unitsOf(budget, cap) }] : []
    })
    for (const { lease, units } of held) {
      lease.open += units
      lease.wasUsed = true
    }
    return {
      end(used) {
        for (const { budget, lease, units } of held) {
          lease.open -= units
          for (const amount of used ?? []) lease.used += unitsOf(budget, amount)
        }
        held.length = 0
      },
    }
  }

  const hasRoom = (budget: GrantedBudget, cap: CallAmount) => {
    const lease = leaseOf(budget)
    return lease && !lease.isRenewed && lease.open + lease.used + unitsOf(budget, cap) <= lease.units
  }

  const take = (budgets: readonly GrantedBudget[], cap: CallAmount): Reservation | null =>
    budgets.every((budget) => hasRoom(budget, cap)) ? hold(budgets, cap) : null

  function refusalOf(budgets: readonly GrantedBudget[], cap: CallAmount): CallRefused {
    const usedUp = budgets.map((budget) => leaseOf(budget)?.usedUp).find((known) => known)
    budgetRefusals.inc({ reason: usedUp ? 'used_up' : 'taken' })
    if (usedUp) return new CallRefused(429, usedUp.message)
    const taken = budgets.find((budget) => !hasRoom(budget, cap)) ?? (budgets[0] as GrantedBudget)
    return new CallRefused(429, budgetTexts.taken(taken, retryAfterSeconds), retryAfterSeconds)
  }

  /** Makes new leases, with room for the calls that wait and, of some budgets, for open calls only. */
  async function lease(calls: readonly Waiting[], renewed: readonly string[]): Promise<void> {
    const granted = new Map(calls.flatMap(({ budgets }) => budgets.map((budget) => [budget.id, budget] as const)))
    const ids = [...new Set([...granted.keys(), ...renewed])]
    const before = new Map(ids.map((id) => [id, { ...(leases.get(id) ?? noLease) }]))
    for (const id of ids) {
      const known = leases.get(id)
      if (known) known.isRenewed = true
    }
    const asks = ids.map((id) => ({
      id,
      open: isOver(before.get(id)) ? 0 : before.get(id)?.open,
      caps: calls.flatMap(({ budgets, cap }) => {
        const budget = budgets.find((one) => one.id === id)
        return budget ? [unitsOf(budget, cap)] : []
      }),
    }))
    try {
      const query = { name: 'lease_budgets', text: 'SELECT * FROM lease_budgets($1, $2)' }
      const asked = db.$client.query<Leased>({ ...query, values: [processId, JSON.stringify(asks)] })
      const { rows } = await pTimeout(asked, { milliseconds: statementTimeoutMs })
      for (const row of rows) note(row, before.get(row.id) ?? noLease, granted.get(row.id))
    } finally {
      for (const id of ids) {
        const known = leases.get(id)
        if (known) known.isRenewed = false
      }
    }
  }

  function note(row: Leased, before: Lease, budget: GrantedBudget | undefined): void {
    const now = performance.now()
    const known = leases.get(row.id)
    // Calls of the period before still end in its lease.
    const isSame = known && !isOver(known)
    const current = isSame ? known : { ...noLease, revision: budget?.revision ?? before.revision }
    const limit = Number(row.limit_units)
    Object.assign(current, {
      revision: budget?.revision ?? current.revision,
      units: Number(row.lease),
      used: isSame ? current.used - before.used : 0,
      endsAt: now + row.ms_left,
      leasedAt: now,
      wasUsed: false,
      usedUp:
        budget && Number(row.used) >= limit
          ? { message: budgetTexts.usedUp(budget, limit, row.ends_at), until: now + refusedMs }
          : null,
    })
    if (!budget && current.units === 0 && current.open === 0) leases.delete(row.id)
    else leases.set(row.id, current)
  }

  function tolerate(budgets: readonly GrantedBudget[], error: unknown): void {
    if (error instanceof CallRefused) throw error
    outage.failed(error)
    const refusing = budgets.find(({ onFault }) => onFault === 'refuse')
    if (!refusing) return
    budgetRefusals.inc({ reason: 'fault' })
    throw new CallRefused(503, budgetTexts.fault(refusing), retryAfterSeconds)
  }

  function decide({ budgets, cap, resolve, reject }: Waiting): void {
    const existing = budgets.filter(({ id }) => leases.has(id)) // the others have just been removed
    const reservation = take(existing, cap)
    if (reservation) resolve(reservation)
    else reject(refusalOf(existing, cap))
  }

  /** Lets calls through, or refuses them, while it is not known what is left. A budget that has room has no fault. */
  function decideInFault({ budgets, cap, resolve, reject }: Waiting, error: unknown): void {
    try {
      tolerate(
        budgets.filter((budget) => !hasRoom(budget, cap)),
        error,
      )
      resolve(hold(budgets, cap))
    } catch (refusal) {
      reject(refusal as Error)
    }
  }

  async function ask(): Promise<void> {
    if (isAsking) return
    isAsking = true
    while (waiting.length + renewals.size > 0) {
      const calls = waiting.splice(0, batchSize)
      const renewed = [...renewals].slice(0, batchSize)
      for (const id of renewed) renewals.delete(id)
      try {
        await lease(calls, renewed)
        outage.recovered()
        calls.forEach(decide)
      } catch (error) {
        for (const call of calls) decideInFault(call, error)
      }
    }
    isAsking = false
  }

  const renewing = setInterval(() => {
    const now = performance.now()
    for (const [id, known] of leases) {
      const { open, units, leasedAt, wasUsed } = known
      if (isOver(known) && open === 0) leases.delete(id)
      else if (units > 0 && ((units > open && !wasUsed) || now - leasedAt > renewAfterMs)) renewals.add(id)
      known.wasUsed = false
    }
    void ask()
  }, renewEveryMs).unref()

  return {
    async reserve(budgets, cap) {
      const taken = take(budgets, cap)
      if (taken) return taken
      const isUsedUp = budgets.some((budget) => (leaseOf(budget)?.usedUp?.until ?? 0) > performance.now())
      if (isUsedUp) throw refusalOf(budgets, cap)
      return new Promise((resolve, reject) => {
        waiting.push({ budgets, cap, resolve, reject })
        void ask()
      })
    },
    tolerate,
    async close() {
      clearInterval(renewing)
      if (leases.size === 0) return
      const given = db.delete(budgetLeases).where(eq(budgetLeases.processId, processId))
      // Those that are not given back end by themselves.
      await pTimeout(given.execute(), { milliseconds: statementTimeoutMs }).catch(() => {})
    },
  }
}

const noLease: Readonly<Lease> = {
  revision: 0,
  units: 0,
  open: 0,
  used: 0,
  endsAt: Number.POSITIVE_INFINITY,
  leasedAt: 0,
  wasUsed: false,
  isRenewed: false,
  usedUp: null,
}

const isOver = (lease: Lease | undefined): boolean => lease !== undefined && lease.endsAt <= performance.now()
