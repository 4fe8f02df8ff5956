/** What texts need to know of a budget. */
export interface NamedBudget {
  name: string
  scope: 'organization' | 'instance' | 'key'
  /** Whether it is only for instances with some labels. */
  isOfLabels: boolean
}

interface LimitedBudget extends NamedBudget {
  unit: 'tokens' | 'usd'
  period: 'hour' | 'day' | 'month'
  timeZone: string
}

const owners = { organization: 'the organization', instance: 'this agent', key: 'this key' } as const
const periods = { hour: 'Hourly', day: 'Daily', month: 'Monthly' } as const

const named = ({ name, scope, isOfLabels }: NamedBudget) =>
  `The budget “${name}” of ${isOfLabels ? 'agents with these labels' : owners[scope]}`

/** An amount for people: tokens, or billionths of a US dollar. */
export const shownAmount = (unit: 'tokens' | 'usd', units: number): string =>
  unit === 'tokens' ? `${units.toLocaleString('en')} tokens` : `$${Number((units / 1e9).toFixed(6))}`

/**
 * Texts that agents read out, and that callers of the API get. OpenClaw does not repeat a call after a usage
 * limit, and shows people a text that says when it resets; in chats only that of a daily or monthly limit. None of them
 * may sound like a problem of the account: after such a one OpenClaw asks no model for ten minutes.
 */
export const budgetTexts = {
  usedUp(budget: LimitedBudget, limitUnits: number, endsAt: Date): string {
    const { unit, period, timeZone } = budget
    const until = endsAt.toLocaleString('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'short' })
    const limit = `${periods[period]} usage limit: ${shownAmount(unit, limitUnits)}.`
    return `${named(budget)} is used up until ${until} (${timeZone}), when it resets. ${limit}`
  },
  taken: (budget: NamedBudget, seconds: number): string =>
    `${named(budget)} is taken by calls that run now. Please try again in ${seconds} seconds.`,
  fault: (budget: NamedBudget): string => `${named(budget)} cannot be checked now. Please try again soon.`,
  keyFault: 'The budgets of this key cannot be read now. Please try again soon.',
  unpriced: (budget: NamedBudget, model: string | null): string =>
    `${named(budget)} refuses models without a known price, such as ${JSON.stringify(model?.slice(0, 200) ?? '')}.`,
}

const usedUp = /The budget “[^”]*” of [^.]* is used up until [^.]*\. \w+ usage limit: [^”]*?\.(?= |$|”)/

/** The text `usedUp` within what OpenClaw says of a failed turn; null when there is none. */
export const findUsedUp = (text: string): string | null => usedUp.exec(text)?.[0] ?? null
