import { newId } from '#platform/ids.ts'
import type { CallEnd, ObserveCall, RelayedCall } from '#relay/call.ts'
import type { BegunCall, CallWriter } from './call-writer.ts'
import { countUsage } from './cost.ts'
import { createRequestReader } from './read-request.ts'
import { createUsageReader, type UsageReader } from './read-usage.ts'

/** Calls that only count tokens or check a text: no vendor charges for them. */
const free = /(?:\/count_tokens|\/input_tokens|:countTokens|\/moderations)$/

const isMetered = ({ method, path }: RelayedCall) => method === 'POST' && !free.test(path)

/**
 * Meters the calls that a vendor charges for: who asked, which model, and the usage that the vendor told. A call that
 * was refused, or that the vendor has not answered because it could not be reached, counts nothing.
 */
export const createMeter =
  (writer: CallWriter): ObserveCall =>
  (call) => {
    if (!isMetered(call)) return null
    const { organizationId, instanceId, provider, path } = call
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
    writer.begin(begun)
    return {
      asked(bytes) {
        if (hasEnded) return
        request.read(bytes)
        const { model, session, cause } = request.told()
        if (model === begun.model && session === begun.session) return
        Object.assign(begun, { model, session, cause })
        writer.begin(begun)
      },
      answer(status, headers) {
        answered = status
        if (status < 400) reader = createUsageReader(provider, headers)
      },
      chunk: (bytes) => reader?.read(bytes),
      end(end) {
        hasEnded = true
        if (!isTaken(answered, end)) return writer.drop(begun)
        const told = reader?.told() ?? { model: null, usage: null }
        const usage = countUsage(provider, path, told, begun.model)
        begun.model = told.model ?? begun.model
        writer.end(begun, end === 'answered' ? 'answered' : 'cut', usage)
      },
    }
  }

function isTaken(status: number | null, end: CallEnd): boolean {
  if (status !== null) return status < 400
  return end === 'client left' || end === 'token refused'
}
