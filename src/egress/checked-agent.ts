import { isIP, type Socket } from 'node:net'
import { Agent, buildConnector } from 'undici'
import { type HostRule, hostAndPort, matches, parseHostRule, readHost } from './hosts.ts'
import { type BlockReason, createDecide } from './policy.ts'
import { connectTo, lookUp, type Resolve, resolveOfOperator } from './reach.ts'

/** The host is not one that a customer may name, or has no address. The message is for the customer. */
export class HostRefused extends Error {}

const reasons: Partial<Record<BlockReason, string>> = {
  private_address: 'has an address that is not public',
  mail_port: 'is a mail server',
}

const connectTimeoutMs = 10_000
const connectionsPerHost = 8

/**
 * An HTTP agent for addresses that customers name. It resolves a host once for each connection, checks all its
 * addresses, and connects to one of these: a name that resolves to a private address the second time reaches nothing.
 * Only hosts of `operatorHosts` may have private addresses. A request fails with HostRefused, or the fault of the
 * connection. It follows no redirects.
 */
export function createCheckedAgent(resolve: Resolve, operatorHosts: readonly HostRule[]): Agent {
  const decide = createDecide(operatorHosts)
  const secure = buildConnector({ timeout: connectTimeoutMs })

  async function open({ hostname, port, protocol }: buildConnector.Options): Promise<Socket> {
    const asked = { host: readHost(hostname) ?? '', port: Number(port) || (protocol === 'https:' ? 443 : 80) }
    const place = hostAndPort(asked.host, asked.port)
    const own = parseHostRule(place, { ranges: false })
    const rules = { mode: 'allowlist' as const, hosts: own ? [own] : [] }
    function check(addresses: readonly string[] | null) {
      const decision = decide(rules, asked, addresses)
      if (!decision.isAllowed) throw new HostRefused(`${place} ${reasons[decision.reason] ?? 'is not a host'}.`)
    }
    check(null)
    const signal = AbortSignal.timeout(connectTimeoutMs)
    const isOfOperator = matches(operatorHosts, asked.host, asked.port)
    const find = () => lookUp(isOfOperator ? resolveOfOperator : resolve, asked.host, signal)
    const addresses = isIP(asked.host) === 0 ? await find() : [asked.host]
    check(addresses)
    return connectTo(asked.host, addresses, asked.port, signal)
  }

  return new Agent({
    connections: connectionsPerHost,
    connect(options, done) {
      open(options).then(
        (socket) => {
          if (options.protocol !== 'https:') return done(null, socket)
          secure({ ...options, httpSocket: socket }, done)
        },
        (error: Error) => done(error, null),
      )
    },
  })
}
