import { texts } from '#errors/texts.ts'
import { newId } from '#platform/ids.ts'
import { type CallEnd, CallRefused, type ObserveCall, type RelayedCall } from '#relay/call.ts'
import { type BudgetReader, isUsedUp, needsPrice, requireLeft, requirePrice } from './budgets.ts'
import { type BegunCall, type CallWriter, storable } from './call-writer.ts'
import { type CountedUsage, countUsage, estimateCost } from './cost.ts'
import { createRequestReader } from './read-request.ts'
import { createUsageReader, type UsageReader } from './read-usage.ts'

/** Calls that only count tokens or check a text: no vendor charges for them. */
const free = /(?:\/count_tokens|\/input_tokens|:countTokens|\/moderations)$/

const retryAfterSeconds = 2

const isMetered = ({ method, path }: RelayedCall) => method === 'POST' && !free.test(path)

/**
 * Meters the calls that a vendor charges for: their session, their model, and the reported usage. A refused call, or
 * one without an answer because the vendor could not be reached, does not count. Refuses a call when one of its budgets
 * is used up. The end user and the cause of a call are those of its session, which the request names. In a long request
 * that may come late; a call that is already being sent is then ended.
 */
export const createMeter =
  (writer: CallWriter, reader: BudgetReader): ObserveCall =>
  (call, refuse) => {
    if (!isMetered(call)) return null
    const { organizationId, instanceId, provider, path, budgets, hasUserBudgets } = call
    const request = createRequestReader(provider, path)
    const begun: BegunCall = {
      ...request.result(),
      id: newId(),
      organizationId,
      instanceId,
      provider,
      beganAt: performance.now(),
    }
    const unattended = budgets.filter((budget) => budget.scope === 'unattended' && isUsedUp(budget))
    const asksPrice = budgets.some(needsPrice)
    let needsSession = hasUserBudgets || unattended.length > 0
    let hasEnded = false
    let isAdmitted = false
    let length = Number.POSITIVE_INFINITY
    let answered: number | null = null
    let usageReader: UsageReader | null = null
    let askedBytes = 0
    let answeredBytes = 0

    const namesAll = () => {
      const { model, session } = request.result()
      return (model !== null || !asksPrice) && (session !== null || !needsSession)
    }

    /**
     * Checks the budgets that depend on the session, once it is known or the whole request has come. Throws
     * CallRefused.
     */
    async function checkSession(): Promise<void> {
      const { cause } = request.result()
      const session = storable(request.result().session)
      if (!needsSession || (session === null && askedBytes < length)) return
      needsSession = false
      try {
        if (hasUserBudgets && session !== null) requireLeft(await reader.ofEndUser({ instanceId, session }))
        if (unattended.length === 0 || cause === 'api' || cause === 'channel') return
        if (cause === 'cron' || !(await reader.wasAsked(instanceId))) requireLeft(unattended)
      } catch (error) {
        throw error instanceof CallRefused ? error : new CallRefused(503, texts.relayBudgets, retryAfterSeconds)
      }
    }

    return {
      async admit(body) {
        requireLeft(budgets.filter(({ scope }) => scope === 'total'))
        if (asksPrice || needsSession) await body.readAhead(namesAll)
        length = body.length ?? (body.hasEnded() ? askedBytes : length)
        const { model } = request.result()
        if (asksPrice && estimateCost(provider, model, 1, 1) === null) requirePrice(budgets, model)
        await checkSession()
        if (hasEnded) return
        isAdmitted = true
        writer.begin(begun)
      },
      asked(bytes) {
        if (hasEnded) return
        askedBytes += bytes.length
        request.read(bytes)
        if (isAdmitted) void checkSession().catch(refuse)
        const { model, session, cause } = request.result()
        if (model === begun.model && session === begun.session) return
        Object.assign(begun, { model, session, cause })
        if (isAdmitted) writer.begin(begun)
      },
      answer(status, headers) {
        answered = status
        if (status < 400) usageReader = createUsageReader(provider, headers)
      },
      chunk(bytes) {
        answeredBytes += bytes.length
        usageReader?.read(bytes)
      },
      end(end) {
        hasEnded = true
        if (!isTaken(answered, end)) return writer.drop(begun)
        const reported = usageReader?.result() ?? { model: null, usage: null }
        const asked = begun.model
        const usage = countUsage(provider, path, reported, asked)
        begun.model = reported.model ?? asked
        const isWhole = end === 'answered'
        const estimate = isWhole && usage ? null : estimateRest(usage, { askedBytes, answeredBytes })
        const cost = estimate && estimateCost(provider, begun.model, estimate.input, estimate.output)
        const estimated = estimate && { tokens: estimate.input + estimate.output, cost }
        writer.end(begun, isWhole ? 'answered' : 'cut', usage, estimated)
      },
    }
  }

/** Bytes of JSON per token of a request, and of an answer, which has one or a few tokens in an event. */
const bytesPerToken = { asked: 4, answered: 32 }

/** The estimated usage of a call from its bytes, beyond the usage reported by its vendor. */
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
