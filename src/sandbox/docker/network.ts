import type Docker from 'dockerode'
import { StartupError } from '#platform/startup-error.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { type DockerClient, inBody } from './engine.ts'
import { readOutput } from './output.ts'
import { fenceContainer, forwarderPort, labels } from './profile.ts'

const icc = 'com.docker.network.bridge.enable_icc'
const bridgeName = 'com.docker.network.bridge.name'
const fenceDeadlineMs = 60_000

/** The network of that name, whose containers do not reach each other. */
export const networkOptions = (name: string): Docker.NetworkCreateOptions => ({
  Name: name,
  Driver: 'bridge',
  EnableIPv6: false,
  Options: { [icc]: 'false', [bridgeName]: name },
})

/** The name of a network's bridge on the host. */
export const bridgeOf = ({ Id, Options }: Docker.NetworkInspectInfo): string =>
  Options?.[bridgeName] ?? `br-${Id.slice(0, 12)}`

/** The agents' own network on the host of dockerd. */
export interface AgentsNetwork {
  /** Makes the network unless it is there. Throws a StartupError for one of that name that is not as it must be. */
  make(signal: AbortSignal): Promise<void>
  /**
   * Keeps the network's containers from the host and the metadata service, by a short-lived container of that image which
   * puts the firewall's rules in place unless they are. Throws SandboxUnavailableError when that fails: nothing is to be
   * started then.
   */
  fence(image: string, signal: AbortSignal): Promise<void>
}

async function wordsOf(output: NodeJS.ReadableStream): Promise<string> {
  const chunks: Buffer[] = []
  for await (const { bytes } of readOutput(output as AsyncIterable<Buffer>)) chunks.push(bytes)
  return Buffer.concat(chunks).toString().trim().slice(-500)
}

/** The network of that name. With `reachable`, what else is attached to it reaches the forwarders of the agents. */
export function agentsNetwork(
  engine: DockerClient,
  name: string,
  { reachable }: { reachable: boolean },
): AgentsNetwork {
  let fencing: Promise<void> | undefined

  async function inspect(signal: AbortSignal): Promise<{ bridge: string } | null> {
    const found = await engine.callUnless([404], signal, (docker) => docker.getNetwork(name).inspect())
    if (!found) return null
    if (found.Driver !== 'bridge' || found.Options?.[icc] !== 'false')
      throw new StartupError(
        `The Docker network ${name} lets its containers reach each other. Remove it, so that Chowder makes it anew, or set DOCKER_NETWORK to another name.`,
      )
    return { bridge: bridgeOf(found) }
  }

  async function make(signal: AbortSignal): Promise<void> {
    if (await inspect(signal)) return
    await engine.callUnless([409], signal, (docker, abortSignal) =>
      docker.createNetwork({ ...inBody(networkOptions(name)), abortSignal }),
    )
    await inspect(signal)
  }

  /** Removes what nobody will start any more: whoever made it was killed. Started ones remove themselves. */
  async function removeLeftOverFences(signal: AbortSignal): Promise<void> {
    const filters = { label: [`${labels.role}=fence`], status: ['created'] }
    const made = await engine.call(signal, (docker, abortSignal) =>
      docker.listContainers({ all: true, filters, abortSignal }),
    )
    for (const { Id, Created } of made) {
      if (Created * 1000 > Date.now() - 2 * fenceDeadlineMs) continue
      await engine.callUnless([404, 409], signal, (docker) => docker.getContainer(Id).remove({ force: false }))
    }
  }

  async function putUpFence(image: string): Promise<void> {
    const signal = AbortSignal.timeout(fenceDeadlineMs)
    await removeLeftOverFences(signal)
    const network = await inspect(signal)
    if (!network) throw new SandboxUnavailableError(new Error(`the network ${name} is gone`))
    const options = fenceContainer(image, network.bridge, reachable ? forwarderPort : null)
    const [code, words] = await engine.call(
      signal,
      async (docker, abortSignal) => {
        const container = await docker.createContainer({ ...inBody(options), abortSignal })
        const output = await container.attach({ stream: true, stdout: true, stderr: true, abortSignal })
        const removed: Promise<{ StatusCode: number }> = container.wait({ condition: 'removed', abortSignal })
        const [lines, { StatusCode }] = await Promise.all([wordsOf(output), removed, container.start({ abortSignal })])
        return [StatusCode, lines] as const
      },
      { deadlineMs: fenceDeadlineMs },
    )
    if (code !== 0)
      throw new SandboxUnavailableError(new Error(`the firewall's rules could not be put in place: ${words}`))
  }

  return {
    make,
    async fence(image, signal) {
      // Starts side by side share one.
      fencing ??= putUpFence(image).finally(() => {
        fencing = undefined
      })
      const { promise: leaving, reject: leave } = Promise.withResolvers<never>()
      const onAbort = () => leave(signal.reason)
      signal.addEventListener('abort', onAbort, { once: true })
      await Promise.race([fencing, leaving]).finally(() => signal.removeEventListener('abort', onAbort))
    },
  }
}
