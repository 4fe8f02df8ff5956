import { budgetTexts } from '#platform/budget-texts.ts'
import { newId } from '#platform/ids.ts'
import { budgetRefusals } from '#platform/metrics.ts'
import type { GrantedBudget } from '#relay/budget.ts'
import { type CallEnd, CallRefused, type ObserveCall, type RelayedCall } from '#relay/call.ts'
import type { BudgetLeases, Reservation } from './budget-leases.ts'
import { type BegunCall, type CallWriter, storable } from './call-writer.ts'
import { type CallAmount, capOf, requirePrice } from './caps.ts'
import { type CountedUsage, countUsage, estimateCost } from './cost.ts'
import type { FindKeyBudgets } from './key-budgets.ts'
import { createRequestReader } from './read-request.ts'
import { createUsageReader, type UsageReader } from './read-usage.ts'

/** Calls that only count tokens or check a text: no vendor charges for them. */
const free = /(?:\/count_tokens|\/input_tokens|:countTokens|\/moderations)$/

const retryAfterSeconds = 2

const isMetered = ({ method, path }: RelayedCall) => method === 'POST' && !free.test(path)

/**
 * Meters the calls that a vendor charges for: who asked, which model, and the usage that the vendor told. A call that
 * was refused, or that the vendor has not answered because it could not be reached, counts nothing. Lets a call through
 * when all its budgets do; what they reserve for it returns when it is written down. The key of a call is that of its
 * session, which the request tells: some say it after their messages.
 */
export const createMeter =
  (writer: CallWriter, leases: BudgetLeases, findKeyBudgets: FindKeyBudgets): ObserveCall =>
  (call) => {
    if (!isMetered(call)) return null
    const { organizationId, instanceId, provider, path, budgets, keyBudgetFault } = call
    const request = createRequestReader(provider, path)
    const begun: BegunCall = {
      ...request.told(),
      id: newId(),
      organizationId,
      instanceId,
      provider,
      beganAt: performance.now(),
    }
    let hasEnded = false
    let answered: number | null = null
    let reader: UsageReader | null = null
    const reservations: Reservation[] = []
    let isAdmitted = false
    let needsKey = keyBudgetFault !== null
    let askedBytes = 0
    let answeredBytes = 0
    function tellsAll(): boolean {
      const { model, maxOutputTokens, session } = request.told()
      return model !== null && maxOutputTokens !== null && (session !== null || !needsKey)
    }

    async function reserve(allowing: readonly GrantedBudget[], requestBytes: number): Promise<void> {
      if (allowing.length === 0) return
      try {
        const { model, maxOutputTokens } = request.told()
        const cap = capOf(provider, { model, maxOutputTokens }, requestBytes)
        requirePrice(allowing, cap, model)
        const reservation = await leases.reserve(allowing, cap)
        if (hasEnded) reservation.end(null)
        else reservations.push(reservation)
      } catch (error) {
        leases.tolerate(allowing, error)
      }
    }

    /** Reserves in the budgets of the key, once the session is told. */
    async function reserveOfKey(requestBytes: number): Promise<void> {
      const session = storable(request.told().session)
      if (!needsKey || session === null) return
      needsKey = false
      let ofKey: readonly GrantedBudget[] = []
      try {
        ofKey = await findKeyBudgets({ instanceId, session })
      } catch (error) {
        leases.tolerate([], error)
        if (keyBudgetFault === 'refuse') throw keyBudgetsUnread()
      }
      await reserve(ofKey, requestBytes)
    }

    const endReservations = (used: readonly CallAmount[] | null) => {
      for (const reservation of reservations) reservation.end(used)
    }

    return {
      async admit(body) {
        if (budgets.length > 0 || needsKey) await body.readAhead(tellsAll)
        const bytes = body.length ?? askedBytes
        await reserve(budgets, bytes)
        await reserveOfKey(bytes)
        if (hasEnded) return
        isAdmitted = true
        writer.begin(begun)
      },
      ...(needsKey && { admitWhole: () => reserveOfKey(askedBytes) }),
      asked(bytes) {
        if (hasEnded) return
        askedBytes += bytes.length
        request.read(bytes)
        const { model, session, cause } = request.told()
        if (model === begun.model && session === begun.session) return
        Object.assign(begun, { model, session, cause })
        if (isAdmitted) writer.begin(begun)
      },
      answer(status, headers) {
        answered = status
        if (status < 400) reader = createUsageReader(provider, headers)
      },
      chunk(bytes) {
        answeredBytes += bytes.length
        reader?.read(bytes)
      },
      end(end) {
        hasEnded = true
        if (!isTaken(answered, end)) {
          endReservations(null)
          return writer.drop(begun)
        }
        const told = reader?.told() ?? { model: null, usage: null }
        const asked = begun.model
        const usage = countUsage(provider, path, told, asked)
        begun.model = told.model ?? asked
        const isWhole = end === 'answered'
        const estimate = isWhole && usage ? null : estimateRest(usage, { askedBytes, answeredBytes })
        const cost = estimate && estimateCost(provider, begun.model, estimate.input, estimate.output)
        const untold = estimate && { tokens: estimate.input + estimate.output, cost }
        writer.end(begun, isWhole ? 'answered' : 'cut', usage, untold, () => endReservations(amountsOf(usage, untold)))
      },
    }
  }

function keyBudgetsUnread(): CallRefused {
  budgetRefusals.inc({ reason: 'fault' })
  return new CallRefused(503, budgetTexts.keyFault, retryAfterSeconds)
}

const amountsOf = (usage: CountedUsage | null, untold: CallAmount | null): CallAmount[] => [
  ...(usage ? [{ tokens: usage.inputTokens + usage.outputTokens, cost: usage.cost }] : []),
  ...(untold ? [untold] : []),
]

/** Bytes of JSON for a token of a request, and of an answer, whose tokens come one or a few at a time in an event. */
const bytesPerToken = { asked: 4, answered: 32 }

/** What a call has used, by its bytes, beside what its vendor has told. */
function estimateRest(
  usage: CountedUsage | null,
  { askedBytes, answeredBytes }: { askedBytes: number; answeredBytes: number },
): { input: number; output: number } {
  const output = Math.ceil(answeredBytes / bytesPerToken.answered)
  if (usage) return { input: 0, output: Math.max(0, output - usage.outputTokens) }
  return { input: Math.ceil(askedBytes / bytesPerToken.asked), output }
}

function isTaken(status: number | null, end: CallEnd): boolean {
  if (status !== null) return status < 400
  return end === 'client left' || end === 'token refused'
}
