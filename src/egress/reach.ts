import type { Socket } from 'node:net'
import { isIP } from 'node:net'
import { egressTexts } from '#platform/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { egressConnections } from '#platform/metrics.ts'
import { connectTo } from './connect.ts'
import type { EgressGrant } from './grants.ts'
import { hostAndPort, matches } from './hosts.ts'
import type { Passage } from './passage.ts'
import { createDecide } from './policy.ts'
import type { EgressRecords } from './records.ts'
import { block, EgressRefused } from './refused.ts'
import { type Resolve, resolveOfOperator } from './resolve.ts'

interface ReachParts {
  /** Looks up the names that agents choose. */
  resolve: Resolve
  records: EgressRecords
  log: Logger
}

/**
 * Connects to what a client asks for, if the grant lets its instance reach it; to the relay in any case. Throws
 * EgressRefused, and the reason of the signal.
 */
export type Reach = (passage: Passage, grant: EgressGrant, signal: AbortSignal) => Promise<Socket>

/** A host is looked up once, all of its addresses are checked, and one of those is connected to. */
export function createReach({ resolve, records, log }: ReachParts): Reach {
  async function lookUp(host: string, isOfOperator: boolean, signal: AbortSignal): Promise<string[]> {
    const { promise: aborted, reject } = Promise.withResolvers<never>()
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      return await Promise.race([isOfOperator ? resolveOfOperator(host) : resolve(host), aborted])
    } catch (error) {
      if (signal.aborted) throw signal.reason
      log.debug({ err: error }, 'a name that an agent asked for has no address')
      throw new EgressRefused(502, 'dns_error', egressTexts.unknownHost(host))
    } finally {
      signal.removeEventListener('abort', onAbort)
    }
  }

  async function connect(host: string, addresses: readonly string[], port: number, signal: AbortSignal) {
    try {
      return await connectTo(host, addresses, port, signal)
    } catch (error) {
      if (signal.aborted) throw error
      const code = String((error as NodeJS.ErrnoException).code ?? 'no connection')
      throw new EgressRefused(502, 'connection_refused', egressTexts.unreachable(hostAndPort(host, port), code))
    }
  }

  return async (passage, { rules, operatorHosts }, signal) => {
    const decide = createDecide(operatorHosts)
    const { asked, isToRelay, ownServer } = passage
    const { host, port } = asked
    // Not at the address that agents have: it may be a Service, which does not lead every pod back to itself.
    if (ownServer) return connect(ownServer.address, [ownServer.address], ownServer.port, signal)
    if (!isToRelay) {
      const byName = decide(rules, asked, null)
      if (!byName.isAllowed) throw block(records, asked, byName.reason)
    }
    const isOfOperator = isToRelay || matches(operatorHosts, host, port)
    const addresses = isIP(host) === 0 ? await lookUp(host, isOfOperator, signal) : [host]
    passage.addresses = addresses
    if (!isToRelay) {
      const decision = decide(rules, asked, addresses)
      if (!decision.isAllowed) throw block(records, asked, decision.reason)
      const verdict = rules.mode === 'report' && !decision.isListed ? 'reported' : 'allowed'
      records.note(asked, verdict)
      egressConnections.inc({ verdict, reason: '' })
    }
    return connect(host, addresses, port, signal)
  }
}
