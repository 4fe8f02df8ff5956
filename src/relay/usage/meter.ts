import { texts } from '#errors/texts.ts'
import { findModel } from '#openclaw/models/models.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { newId } from '#platform/ids.ts'
import { type CallEnd, CallRefused, type ObserveCall, type RelayedCall } from '#relay/call.ts'
import { type BudgetReader, isUsedUp, needsPrice, requireLeft, requirePrice } from './budgets.ts'
import { type BegunCall, type CallWriter, storable } from './call-writer.ts'
import { type CountedUsage, countUsage, estimateCost } from './cost.ts'
import { createRequestReader, type ParsedRequest } from './read-request.ts'
import { createUsageReader, type UsageReader } from './read-usage.ts'

/** Calls that only count tokens or check a text: no vendor charges for them. */
const free = /(?:\/count_tokens|\/input_tokens|:countTokens|\/moderations)$/

const retryAfterSeconds = 2
const maxToolLength = 100

const isMetered = ({ method, path }: RelayedCall) => method === 'POST' && !free.test(path)

/** Calls that generate as many tokens as they ask for. */
const generating = /(?:\/messages|\/responses|\/completions|:(?:streamG|g)enerateContent)$/

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

    /** The refusal of what must not reach the vendor, as far as the request has come. */
    function findForbidden(): CallRefused | null {
      const { isBackground, vendorTool } = request.result()
      if (isBackground) return new CallRefused(400, texts.relayBackground)
      if (vendorTool === null || call.hasOpenEgress) return null
      return new CallRefused(400, texts.relayVendorTool(vendorTool.slice(0, maxToolLength)))
    }

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
        const forbidden = findForbidden()
        if (forbidden) return refuse(forbidden)
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
        const bytes = { askedBytes, answeredBytes }
        const estimate =
          isWhole && usage ? null : estimateRest(usage, call, { ...begun, ...request.result(), ...bytes })
        const cost = estimate && estimateCost(provider, begun.model, estimate.input, estimate.output)
        const estimated = estimate && { tokens: estimate.input + estimate.output, cost }
        writer.end(begun, isWhole ? 'answered' : 'cut', usage, estimated)
      },
    }
  }

/** Bytes of JSON per token of a request, and of an answer, which has one or a few tokens in an event. */
const bytesPerToken = { asked: 4, answered: 32 }
/** More than models generate. A vendor stops a stream whose client has left, and works on without one. */
const streamedTokensPerMs = 0.3

/**
 * The estimated usage of a call beyond the usage reported by its vendor. Without a report it is all that the call may
 * have used: a client that leaves early must not be cheaper than one that stays.
 */
function estimateRest(
  usage: CountedUsage | null,
  { provider, path }: RelayedCall,
  sent: ParsedRequest & { beganAt: number; askedBytes: number; answeredBytes: number },
): { input: number; output: number } {
  const output = Math.ceil(sent.answeredBytes / bytesPerToken.answered)
  if (usage) return { input: 0, output: Math.max(0, output - usage.outputTokens) }
  const input = Math.ceil(sent.askedBytes / bytesPerToken.asked)
  if (!generating.test(path)) return { input, output }
  const model = findModel(defaultRelease, provider, sent.model ?? '')
  const streamed = sent.isStreamed ? (performance.now() - sent.beganAt) * streamedTokensPerMs : Number.POSITIVE_INFINITY
  const allowed = Math.min(sent.maxOutput ?? model.max_output_tokens, model.max_output_tokens, streamed)
  return {
    input: Math.max(input, sent.isContinuation ? model.context_window : 0),
    output: Math.max(output, Math.ceil(allowed)),
  }
}

function isTaken(status: number | null, end: CallEnd): boolean {
  if (status !== null) return status < 400
  return end === 'client left' || end === 'token refused'
}
