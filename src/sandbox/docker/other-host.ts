import { isIPv4 } from 'node:net'
import { StartupError } from '#errors/startup-error.ts'
import { isLoopback } from '#settings/exposure.ts'
import { connectionTo, type DockerdAddress } from './docker-client.ts'

interface Reached {
  dockerd: DockerdAddress
  publishAddress: string
  /** null when the relay is not on the host of dockerd. */
  relayPort: number | null
}

/** Throws a StartupError if Chowder and the agents of a dockerd on another machine could not reach each other. */
export function requireReachable({ dockerd, publishAddress, relayPort }: Reached): void {
  const connection = connectionTo(dockerd)
  if (!('host' in connection) || isLoopback(connection.host)) return
  const there = `DOCKER_HOST is ${dockerd.host}, a dockerd on another machine`
  if (isLoopback(publishAddress))
    throw new StartupError(
      `${there}, and DOCKER_PUBLISH_ADDRESS is ${publishAddress}: gateways would listen on the loopback there, where Chowder cannot reach them. Set DOCKER_PUBLISH_ADDRESS to the address of that machine in a private network, such as a VPN, that both are in.`,
    )
  if (relayPort !== null)
    throw new StartupError(
      `${there}, and RELAY_URL is not set: agents would look for the relay there. Set RELAY_URL to the address of this machine in the private network with RELAY_PORT, such as http://10.1.0.2:8090.`,
    )
}

/** The relay on another machine, if the firewall can name it: at an IPv4 address, without TLS; null for any other. */
export function relayElsewhere(relayUrl: string | null): { address: string; port: number } | null {
  if (relayUrl === null) return null
  const { protocol, hostname, port } = new URL(relayUrl)
  return protocol === 'http:' && isIPv4(hostname) ? { address: hostname, port: Number(port || 80) } : null
}
