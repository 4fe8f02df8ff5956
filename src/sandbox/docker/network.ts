import type Docker from 'dockerode'
import pTimeout from 'p-timeout'
import { StartupError } from '#errors/startup-error.ts'
import { forwarderPort } from '#sandbox/container/layout.ts'
import { readOutput } from '#sandbox/container/output.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { firewallContainer, labels, relayContainer } from './profile.ts'

const icc = 'com.docker.network.bridge.enable_icc'
const noAddress = 'com.docker.network.bridge.inhibit_ipv4'
const bridgeName = 'com.docker.network.bridge.name'
const firewallDeadlineMs = 60_000
const maxErrorLength = 500
/** The firewall program prints this line for each rule that it adds. */
const addedLine = /^added to /m
const anew = 'Remove it, so that it is made anew, or name another network.'

/**
 * The options of a network whose containers cannot reach each other. An internal network leads to no other host, and
 * the host has no address in it.
 */
export const networkOptions = (name: string, { internal }: { internal: boolean }): Docker.NetworkCreateOptions => ({
  Name: name,
  Driver: 'bridge',
  Internal: internal,
  EnableIPv6: false,
  Options: { [icc]: 'false', ...(internal && { [noAddress]: 'true' }), [bridgeName]: name },
})

/** The name of a network's bridge on the host. */
export const bridgeOf = ({ Id, Options }: Docker.NetworkInspectInfo): string =>
  Options?.[bridgeName] ?? `br-${Id.slice(0, 12)}`

/**
 * A network on the host of dockerd that the firewall separates from that host: that of the agents, or of their relay.
 */
export interface FirewalledNetwork {
  /**
   * Creates the network unless it exists, and returns whether it is internal. Throws a StartupError if a network of
   * that name lets its containers reach each other, or has IPv6.
   */
  make(signal: AbortSignal): Promise<{ internal: boolean }>
  /**
   * Blocks connections from the network's containers to the host and the metadata service: a short-lived container of
   * the image adds missing firewall rules. Returns whether it has added one. Throws SandboxUnavailableError when that
   * fails; no agent may be started then. With a relay the containers reach only the relay.
   */
  protect(image: string, signal: AbortSignal): Promise<boolean>
  /** The address of the host in the network. Creates the network unless it exists. */
  hostAddress(signal: AbortSignal): Promise<string>
}

async function textOf(output: NodeJS.ReadableStream): Promise<string> {
  const chunks: Buffer[] = []
  for await (const { bytes } of readOutput(output as AsyncIterable<Buffer>)) chunks.push(bytes)
  return Buffer.concat(chunks).toString().trim().slice(-maxErrorLength)
}

interface Known {
  bridge: string
  /** The address of the host. */
  address: string | undefined
  internal: boolean
}

interface NetworkOptions {
  /** The containers on the network. */
  of: 'agents' | 'relay'
  /** Whether other containers on the network reach the forwarders of the agents. */
  reachable: boolean
  /** The relay, if it is not in the network; without an address, at the host's address in the network. */
  relay: { address: string | null; port: number } | null
}

/** The network with that name. It is created internal if the control plane is in it, and the host need not reach it. */
export function firewalledNetwork(
  client: DockerClient,
  name: string,
  { of, reachable, relay }: NetworkOptions,
): FirewalledNetwork {
  let protecting: Promise<boolean> | undefined
  let knownAddress: string | undefined

  async function inspect(signal: AbortSignal): Promise<Known | null> {
    const found = await client.callUnless([404], signal, (docker) => docker.getNetwork(name).inspect())
    if (!found) return null
    if (found.Driver !== 'bridge' || found.Options?.[icc] !== 'false')
      throw new StartupError(`The Docker network ${name} lets its containers reach each other. ${anew}`)
    if (found.EnableIPv6)
      throw new StartupError(
        `The Docker network ${name} has IPv6, and the firewall rules of agents are for IPv4 alone. ${anew}`,
      )
    return { bridge: bridgeOf(found), address: found.IPAM?.Config?.[0]?.Gateway, internal: found.Internal }
  }

  async function existing(signal: AbortSignal): Promise<Known> {
    const found = await inspect(signal)
    if (!found) throw new SandboxUnavailableError(new Error(`the network ${name} was deleted`))
    return found
  }

  async function make(signal: AbortSignal): Promise<Known> {
    const found = await inspect(signal)
    if (found) return found
    await client.callUnless([409], signal, (docker, abortSignal) =>
      docker.createNetwork({ ...inBody(networkOptions(name, { internal: reachable })), abortSignal }),
    )
    return await existing(signal)
  }

  /**
   * Removes firewall containers that were never started because their creator was killed. Started ones remove
   * themselves.
   */
  async function removeUnstarted(signal: AbortSignal): Promise<void> {
    const filters = { label: [`${labels.role}=firewall`], status: ['created'] }
    const unstarted = await client.call(signal, (docker, abortSignal) =>
      docker.listContainers({ all: true, filters, abortSignal }),
    )
    for (const { Id, Created } of unstarted) {
      if (Created * 1000 > Date.now() - 2 * firewallDeadlineMs) continue
      await client.callUnless([404, 409], signal, (docker) => docker.getContainer(Id).remove({ force: false }))
    }
  }

  async function addRules(image: string): Promise<boolean> {
    const signal = AbortSignal.timeout(firewallDeadlineMs)
    await removeUnstarted(signal)
    const { bridge, address: hostAddress } = await existing(signal)
    const added = await run(firewallContainer(image, bridge, of, reachable ? forwarderPort : null), signal)
    const address = relay?.address ?? hostAddress
    if (relay === null || address === undefined) return added
    const endpoint = { address, port: relay.port, isOnHost: relay.address === null }
    return (await run(relayContainer(image, bridge, endpoint, { anew: added }), signal)) || added
  }

  /** Runs a container that adds rules. Returns whether it has added one. */
  async function run(options: Docker.ContainerCreateOptions, signal: AbortSignal): Promise<boolean> {
    const [code, printed] = await client.call(
      signal,
      async (docker, abortSignal) => {
        const container = await docker.createContainer({ ...inBody(options), abortSignal })
        const output = await container.attach({ stream: true, stdout: true, stderr: true, abortSignal })
        const removed: Promise<{ StatusCode: number }> = container.wait({ condition: 'removed', abortSignal })
        const [lines, { StatusCode }] = await Promise.all([textOf(output), removed, container.start({ abortSignal })])
        return [StatusCode, lines] as const
      },
      { deadlineMs: firewallDeadlineMs },
    )
    if (code !== 0) throw new SandboxUnavailableError(new Error(`the firewall rules could not be added: ${printed}`))
    return addedLine.test(printed)
  }

  return {
    make,
    async hostAddress(signal) {
      if (knownAddress !== undefined) return knownAddress
      knownAddress = (await make(signal)).address
      if (knownAddress === undefined) {
        throw new StartupError(`The Docker network ${name} has no address for its host. ${anew}`)
      }
      return knownAddress
    },
    async protect(image, signal) {
      // Concurrent starts share one container.
      protecting ??= addRules(image).finally(() => {
        protecting = undefined
      })
      return await pTimeout(protecting, { milliseconds: Number.POSITIVE_INFINITY, signal })
    },
  }
}
