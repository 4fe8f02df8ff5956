import { egressTexts } from '#platform/egress-texts.ts'
import type { FindEgressGrant } from './grants.ts'
import { countBytes, type Passage } from './passage.ts'
import { createDecide } from './policy.ts'
import type { EgressRecords } from './records.ts'
import { block, EgressRefused } from './refused.ts'

/** With the time that a policy is cached, open connections that are no longer allowed end within a second. */
const recheckEveryMs = 500

interface RecheckParts {
  findGrant: FindEgressGrant
  records: EgressRecords
}

/**
 * Every half second, until it is stopped, counts the bytes of open connections and ends those whose instances may no
 * longer have them. While the database is away, what was allowed stays allowed.
 */
export function startRecheck(open: ReadonlySet<Passage>, { findGrant, records }: RecheckParts): { stop(): void } {
  async function recheck(passage: Passage): Promise<void> {
    countBytes(records, passage)
    const { asked, addresses, isToRelay, end } = passage
    const grant = await findGrant(asked.instanceId).catch(() => undefined)
    if (grant === undefined || !open.has(passage)) return
    if (grant === null) return end.abort(new EgressRefused(403, 'http_request_denied', egressTexts.stopped))
    if (isToRelay) return
    const decision = createDecide(grant.operatorHosts)(grant.rules, asked, addresses)
    if (!decision.isAllowed) end.abort(block(records, asked, decision.reason))
  }

  let isChecking = false
  const timer = setInterval(() => {
    if (isChecking) return
    isChecking = true
    void Promise.all([...open].map(recheck)).finally(() => {
      isChecking = false
    })
  }, recheckEveryMs).unref()
  return { stop: () => clearInterval(timer) }
}
