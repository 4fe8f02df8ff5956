/** The facts of a budget for its texts. */
interface NamedBudget {
  name: string
  owner: 'organization' | 'instance'
  scope: 'total' | 'end_user' | 'unattended'
}

type Unit = 'tokens' | 'usd' | 'calls'

interface LimitedBudget extends NamedBudget {
  unit: Unit
  limitUnits: number
  period: 'hour' | 'day' | 'month'
  timeZone: string
  endsAt: string | null
}

const owners = { organization: 'the organization', instance: 'this agent' } as const
const periods = { hour: 'Hourly', day: 'Daily', month: 'Monthly' } as const

const named = ({ name, owner, scope }: NamedBudget) => {
  const whose = { total: owners[owner], end_user: 'this end user', unattended: 'unattended calls of this agent' }[scope]
  return `The budget “${name}” of ${whose}`
}

/** An amount for people: tokens, calls, or billionths of a US dollar. */
export const shownAmount = (unit: Unit, units: number): string =>
  unit === 'usd' ? `$${Number((units / 1e9).toFixed(6))}` : `${units.toLocaleString('en')} ${unit}`

/**
 * Texts that agents show people, and that callers of the API get. OpenClaw does not repeat a call after a usage limit,
 * and shows people a text with the time of the reset; in chats only that of a daily or monthly limit. None of them may
 * read like a problem of the account: after such a text OpenClaw makes no model calls for ten minutes.
 */
export const budgetTexts = {
  usedUp(budget: LimitedBudget): string {
    const { unit, limitUnits, period, timeZone, endsAt } = budget
    const end = new Date(endsAt ?? Date.now())
    const until = end.toLocaleString('sv-SE', { timeZone, dateStyle: 'short', timeStyle: 'short' })
    const limit = `${periods[period]} usage limit: ${shownAmount(unit, limitUnits)}.`
    return `${named(budget)} is used up until ${until} (${timeZone}), when it resets. ${limit}`
  },
  unpriced: (budget: NamedBudget, model: string | null): string =>
    `${named(budget)} refuses models without a known price, such as ${JSON.stringify(model?.slice(0, 200) ?? '')}.`,
}

const usedUp = /The budget “[^”]*” of [^.]* is used up until [^.]*\. \w+ usage limit: [^”]*?\.(?= |$|”)/

/** The text `usedUp` within OpenClaw's text about a failed turn; null if there is none. */
export const findUsedUp = (text: string): string | null => usedUp.exec(text)?.[0] ?? null
