import { lookup, Resolver } from 'node:dns/promises'
import { once } from 'node:events'
import { connect as connectSocket, isIP, type LookupFunction, type Socket } from 'node:net'
import { egressTexts } from '#errors/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { egressConnections } from '#platform/metrics.ts'
import type { EgressGrant } from './grants.ts'
import { hostAndPort, matches } from './hosts.ts'
import type { Passage } from './passage.ts'
import { createDecide } from './policy.ts'
import type { EgressRecords } from './records.ts'
import { block, EgressRefused } from './refused.ts'

/** Resolves all addresses of a name. Rejects when it has none, or when no name server answers. */
export type Resolve = (name: string) => Promise<string[]>

const timeoutMs = 2500
const tries = 2
const maxAddresses = 16

/**
 * Asks the name servers of this host without a thread of the pool, which files, compression and encryption of the whole
 * process need: agents choose these names, and may choose servers that never answer. Does not read the hosts file of
 * this machine: its names are not for agents.
 */
export function createResolve(): Resolve {
  const resolver = new Resolver({ timeout: timeoutMs, tries })
  return async (name) => {
    const answers = await Promise.allSettled([resolver.resolve4(name), resolver.resolve6(name)])
    const addresses = answers.flatMap((answer) => (answer.status === 'fulfilled' ? answer.value : []))
    if (addresses.length > 0) return addresses.slice(0, maxAddresses)
    const failed = answers.find(({ status }) => status === 'rejected') as PromiseRejectedResult | undefined
    throw failed?.reason ?? new Error(`${name} has no address`)
  }
}

/** Resolves a name of the operator, like every program of this host. */
export const resolveOfOperator: Resolve = async (name) =>
  (await lookup(name, { all: true })).map(({ address }) => address)

/** Resolves a name until the signal is aborted. Rejects with its reason, or the error of the name servers. */
export async function lookUp(resolve: Resolve, host: string, signal: AbortSignal): Promise<string[]> {
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const onAbort = () => reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    return await Promise.race([resolve(host), aborted])
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** Time until the next address of a host is tried as well. */
const nextAddressMs = 1000

/**
 * Connects to one of the addresses, and to no other: the name is not resolved again. Rejects with the reason of the
 * signal, or the error of the last address.
 */
export async function connectTo(
  host: string,
  addresses: readonly string[],
  port: number,
  signal: AbortSignal,
): Promise<Socket> {
  signal.throwIfAborted()
  const entries = addresses.map((address) => ({ address, family: isIP(address) }))
  const addressesOf: LookupFunction = (_host, _options, done) => done(null, entries)
  const socket = connectSocket({
    host,
    port,
    lookup: addressesOf,
    allowHalfOpen: true,
    noDelay: true,
    autoSelectFamily: true,
    autoSelectFamilyAttemptTimeout: nextAddressMs,
  })
  try {
    await once(socket, 'connect', { signal })
    return socket
  } catch (error) {
    socket.on('error', () => {}).destroy()
    throw signal.aborted ? signal.reason : error
  }
}

interface ReachParts {
  /** Resolves the names that agents choose. */
  resolve: Resolve
  records: EgressRecords
  log: Logger
}

/**
 * Connects to the requested host if the grant permits it; to the relay in any case. Throws EgressRefused, and the
 * reason of the signal.
 */
export type Reach = (passage: Passage, grant: EgressGrant, signal: AbortSignal) => Promise<Socket>

/** A host is resolved once, all of its addresses are checked, and one of them is used. */
export function createReach({ resolve, records, log }: ReachParts): Reach {
  async function find(host: string, isOfOperator: boolean, signal: AbortSignal): Promise<string[]> {
    try {
      return await lookUp(isOfOperator ? resolveOfOperator : resolve, host, signal)
    } catch (error) {
      if (signal.aborted) throw error
      log.debug({ err: error }, 'failed to resolve a name for an agent')
      throw new EgressRefused(502, 'dns_error', egressTexts.unknownHost(host))
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
    // Not at the agents' address: it may be a Service, which does not lead every pod back to itself.
    if (ownServer) return connect(ownServer.address, [ownServer.address], ownServer.port, signal)
    if (!isToRelay) {
      const byName = decide(rules, asked, null)
      if (!byName.isAllowed) throw block(records, asked, byName.reason)
    }
    const isOfOperator = isToRelay || matches(operatorHosts, host, port)
    const addresses = isIP(host) === 0 ? await find(host, isOfOperator, signal) : [host]
    passage.addresses = addresses
    if (!isToRelay) {
      const decision = decide(rules, asked, addresses)
      if (!decision.isAllowed) throw block(records, asked, decision.reason)
      const verdict = rules.mode === 'report' && !decision.isListed ? 'reported' : 'allowed'
      records.record(asked, verdict)
      egressConnections.inc({ verdict, reason: '' })
    }
    return connect(host, addresses, port, signal)
  }
}
