import type Docker from 'dockerode'
import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import { activityIn, processProbe } from '#sandbox/container/activity.ts'
import { filesBatch, filesBy, limitSessions } from '#sandbox/container/files.ts'
import type { Admission } from '#sandbox/container/image/forwarder.ts'
import type { ReleaseSource } from '#sandbox/container/image.ts'
import { forwarderPort, releasesBase } from '#sandbox/container/layout.ts'
import {
  noKeptLimits,
  noUsage,
  type Observation,
  SandboxAbsentError,
  type SandboxDriver,
  type SandboxPaths,
  type SandboxSpec,
  SandboxUnavailableError,
} from '#sandbox/driver.ts'
import { createDockerClient, type DockerClient, type DockerdAddress, inBody } from './docker-client.ts'
import { followEnds } from './ends.ts'
import { execBeside } from './exec.ts'
import { openFilesSession } from './files-container.ts'
import { createImages } from './images.ts'
import { changeLimits, diskUseOf, keptLimits } from './limits.ts'
import { readLog } from './logs.ts'
import { measureContainer, memoryIn, statsOf } from './measure.ts'
import { firewalledNetwork } from './network.ts'
import { relayElsewhere, requireReachable } from './other-host.ts'
import {
  forwarderKey,
  labels,
  roomContainer,
  roomName,
  sandboxContainer,
  sandboxName,
  sharedUser,
  volumeLabels,
} from './profile.ts'

export interface DockerDriverOptions {
  /** The sandboxes of other installations on the same host are ignored. */
  installation: string
  dockerd: DockerdAddress
  /**
   * The IPv4 address of the host of dockerd at whose ports Chowder reaches gateways; null when it is itself in a container
   * of their network, and reaches them there.
   */
  publishAddress: string | null
  /** The name of the agents' network and of its bridge. */
  network: string
  /** The relay's network to other hosts, if the relay is in a container as well. */
  egressNetwork: string | null
  /** The relay's port at the address of this host in the network; null if the relay is elsewhere. */
  relayPort: number | null
  /**
   * The relay's URL when it is not on the Docker host; null if there is none. Agents reach no other host if it names an
   * IPv4 address, or if their network is internal.
   */
  relayUrl: string | null
  buildNetwork: string
  extraCaFile: string | null
  nodeImage: string
  releaseSource(release: string): ReleaseSource
  /** The requests that the forwarder passes to a gateway. */
  admission: Admission
  /** Gets one line when dockerd becomes unreachable, and one when it answers again. */
  log?: Pick<Logger, 'info' | 'warn'>
}

/** The time that dockerd needs in addition to the grace time. */
const stopMarginMs = 20_000
const removalTimeoutMs = 10_000
const retryMs = 200
const killedCode = 137
const duTimeoutMs = 5000
const probeTimeoutMs = 10_000

const isolation =
  'Each agent is a container without privileges, kept from the services of this host, from the cloud’s metadata service and from other agents.'

/**
 * Creates the driver of an installation's sandboxes on the host of a dockerd: a container and a volume for each
 * instance, named by its id, which outlive this process. Makes no call of dockerd yet. Throws a StartupError for a bad
 * address.
 */
export function createDockerDriver(options: DockerDriverOptions): SandboxDriver {
  const { installation, publishAddress, admission } = options
  if (publishAddress !== null) requireReachable({ ...options, publishAddress })
  const client = createDockerClient(options.dockerd, options.log)
  const images = createImages(client, options.releaseSource, {
    network: options.buildNetwork,
    extraCaFile: options.extraCaFile,
    nodeImage: options.nodeImage,
  })
  const { relayPort, relayUrl, egressNetwork } = options
  const reachable = publishAddress === null
  const elsewhere = publishAddress !== null && relayPort === null ? relayElsewhere(relayUrl) : null
  const relay = relayPort === null ? elsewhere : { address: null, port: relayPort }
  const network = firewalledNetwork(client, options.network, { of: 'agents', reachable, relay })
  const firewalled = [network]
  if (egressNetwork !== null)
    firewalled.push(firewalledNetwork(client, egressNetwork, { of: 'relay', reachable, relay: null }))
  const filesOptions = { client, images, installation, inspect: existing }
  const sessionsOf = limitSessions((id, signal) => openFilesSession(id, filesOptions, signal))

  const inspect = (id: string, signal: AbortSignal) =>
    client.callUnless([404], signal, (docker, abortSignal) =>
      docker.getContainer(sandboxName(id)).inspect({ abortSignal }),
    )

  async function existing(id: string, signal: AbortSignal): Promise<Docker.ContainerInspectInfo> {
    const container = await inspect(id, signal)
    if (!container) throw new SandboxAbsentError(`there is no sandbox ${id}`)
    return container
  }

  /** null while the container has no address. */
  function endpointOf(id: string, { NetworkSettings }: Docker.ContainerInspectInfo): Observation['endpoint'] {
    if (publishAddress === null) {
      // The name, not the address: dockerd gives the address of an ended container to the next one. The network may be
      // another one of the control plane: a sandbox keeps its own until its next start.
      const isAttached = Object.values(NetworkSettings.Networks).some(({ IPAddress }) => IPAddress)
      return isAttached ? { kind: 'tcp', host: sandboxName(id), port: forwarderPort } : null
    }
    const published = NetworkSettings.Ports[forwarderKey]?.[0]
    return published ? { kind: 'tcp', host: published.HostIp, port: Number(published.HostPort) } : null
  }

  /** The proxy, which listens at the relay's address, if sandboxes have no other way out. */
  async function proxyFor(signal: AbortSignal): Promise<string | null> {
    if (relayPort !== null) return `http://${await network.hostAddress(signal)}:${relayPort}`
    return elsewhere !== null || (await network.make(signal)).internal ? relayUrl : null
  }

  /** Adds missing firewall rules. Returns whether any were missing. */
  async function protect(image: string, signal: AbortSignal): Promise<boolean> {
    const added = await Promise.all(firewalled.map((each) => each.protect(image, signal)))
    return added.includes(true)
  }

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    const image = await images.nameOf(spec.release)
    // After a crash here, the next create finds the volume, or the container without its network.
    const { Labels } = await client.call(signal, async (docker, abortSignal) => {
      const wanted = { Name: sandboxName(spec.id), Labels: volumeLabels(installation, spec.id) }
      return (await docker.createVolume({ ...inBody(wanted), abortSignal })).inspect({ abortSignal })
    })
    const user = Labels?.[labels.user] ?? sharedUser
    const wanted = sandboxContainer(spec, {
      installation,
      image,
      releaseFolder: options.releaseSource(spec.release).folder(releasesBase),
      network: options.network,
      publishAddress,
      admission,
      user,
      proxy: await proxyFor(signal),
    })
    const old = await inspect(spec.id, signal)
    if (old?.State.Running || (old && old.Config.Labels[labels.spec] === wanted.Labels?.[labels.spec])) return
    if (old) await removeContainer(client, old.Id, signal, { force: false })
    await network.make(signal)
    await removeContainer(client, roomName(spec.id), signal)
    if (spec.room) await make(roomContainer(spec, spec.room, { installation, image, user }), signal)
    // The sandbox comes last: if it exists, its room exists.
    await make(wanted, signal)
  }

  /** 409: another create was faster, and its container is used. */
  async function make(container: Docker.ContainerCreateOptions, signal: AbortSignal): Promise<void> {
    await client.callUnless([409], signal, (docker, abortSignal) =>
      docker.createContainer({ ...inBody(container), abortSignal }),
    )
  }

  async function start(id: string, signal: AbortSignal): Promise<void> {
    const container = await existing(id, signal)
    if (container.State.Running) return
    await network.make(signal)
    await protect(container.Image, signal)
    const names = [...(pathsOf(container).room ? [roomName(id)] : []), sandboxName(id)]
    let started = true
    for (const name of names) started &&= (await startContainer(name, signal)) ?? false
    if (started) return
    // A container was deleted, or the network that it was created with. The agent's files are in the volume.
    await removeContainer(client, sandboxName(id), signal, { force: false })
    throw new SandboxAbsentError(`there is no sandbox ${id}`)
  }

  /** Null if the container is missing, or its network. */
  const startContainer = (name: string, signal: AbortSignal) =>
    client.callUnless([404], signal, async (docker, abortSignal) => {
      await docker
        .getContainer(name)
        .start({ abortSignal })
        .catch((error) => {
          if (error.statusCode !== 304) throw error // another start was faster
        })
      return true
    })

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    await client.callUnless(
      [304, 404],
      signal,
      (docker, abortSignal) => docker.getContainer(sandboxName(id)).stop({ t: Math.ceil(graceMs / 1000), abortSignal }),
      { deadlineMs: graceMs + stopMarginMs },
    )
    // Repeated, since dockerd may be restarting the room, which may also be absent.
    async function isRoomStopped(): Promise<boolean> {
      await client.callUnless([304, 404], signal, (docker, abortSignal) =>
        docker.getContainer(roomName(id)).stop({ t: 0, abortSignal }),
      )
      const room = await client.callUnless([404], signal, (docker, abortSignal) =>
        docker.getContainer(roomName(id)).inspect({ abortSignal }),
      )
      return !room?.State.Running
    }
    if (!(await poll(isRoomStopped, { pauseMs: retryMs, timeoutMs: stopMarginMs, signal })))
      throw new SandboxUnavailableError(new Error(`the room of ${sandboxName(id)} does not stop`))
  }

  async function destroy(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    let conflict: Error | null = null
    // The volume may be in use by a container that is being removed, or by a new container for files.
    async function isRemoved(): Promise<boolean> {
      await removeContainer(client, sandboxName(id), signal)
      for (const { Id } of await containersOf([`${labels.instance}=${id}`], signal)) {
        await removeContainer(client, Id, signal)
      }
      conflict = await client.callUnless([404], signal, (docker, abortSignal) =>
        docker
          .getVolume(sandboxName(id))
          .remove({ abortSignal })
          .then(
            () => null,
            (error) => {
              if (error.statusCode === 409) return error as Error
              throw error
            },
          ),
      )
      return conflict === null
    }
    if (!(await poll(isRemoved, { pauseMs: retryMs, timeoutMs: removalTimeoutMs, signal })))
      throw new SandboxUnavailableError(conflict)
  }

  const containersOf = (label: string[], signal: AbortSignal) =>
    client.call(signal, (docker, abortSignal) =>
      docker.listContainers({
        all: true,
        filters: { label: [`${labels.installation}=${installation}`, ...label] },
        abortSignal,
      }),
    )

  async function observe(id: string, signal: AbortSignal): Promise<Observation> {
    const container = await inspect(id, signal)
    if (!container) return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
    const { Running, Status, ExitCode, OOMKilled } = container.State
    const seen = { sandboxId: `docker-${container.Id.slice(0, 12)}`, paths: pathsOf(container) }
    if (Running) return { ...seen, state: 'running', endpoint: endpointOf(id, container) }
    const stopped = { ...seen, state: 'stopped' as const, endpoint: null }
    if (Status === 'created') return stopped
    return { ...stopped, exit: { code: ExitCode, oom: OOMKilled && ExitCode === killedCode } }
  }

  async function* list(signal: AbortSignal) {
    const seen = new Set<string>()
    for (const { Labels, State, Ports } of await containersOf([`${labels.role}=sandbox`], signal)) {
      const id = Labels[labels.instance] ?? ''
      seen.add(id)
      const state = State === 'running' || State === 'paused' ? ('running' as const) : ('stopped' as const)
      const { IP, PublicPort } = Ports.find(({ PrivatePort }) => PrivatePort === forwarderPort) ?? {}
      yield { id, state, ...(IP && PublicPort && { endpoint: { kind: 'tcp' as const, host: IP, port: PublicPort } }) }
    }
    // A volume without a container belongs to a half-created or half-removed sandbox.
    const { Volumes } = await client.call(signal, (docker, abortSignal) =>
      docker.listVolumes({ filters: { label: [`${labels.installation}=${installation}`] }, abortSignal }),
    )
    for (const { Labels } of Volumes ?? []) {
      const id = Labels?.[labels.instance] ?? ''
      if (!seen.has(id)) yield { id, state: 'stopped' as const }
    }
  }

  return {
    name: 'docker',
    isolation,
    hasTwoRooms: true,
    outage: client.outage,
    hostAddress: network.hostAddress,
    create,
    start,
    stop,
    destroy,
    observe,
    async activity(id, signal) {
      const container = await inspect(id, signal)
      if (!container?.State.Running) return null
      const options = { timeoutMs: probeTimeoutMs }
      const probed = await execBeside(client, container.Id, pathsOf(container), processProbe, options, signal)
      return probed && activityIn(probed.stdout)
    },
    list,
    ends: (signal) => followEnds(client, installation, signal),
    async protect(signal) {
      const sandboxes = await containersOf([`${labels.role}=sandbox`], signal)
      const running = sandboxes.find(({ State }) => State === 'running')
      return running ? protect(running.ImageID, signal) : false
    },
    prepare: (release, progress, signal) => images.make(release, progress, signal),
    // The image has every plugin of its release.
    prepareChannel: (release, _channel, progress, signal) => images.make(release, progress, signal),
    async exec(id, argv, execOptions, signal) {
      const paths = pathsOf(await existing(id, signal))
      const result = await execBeside(client, sandboxName(id), paths, argv, execOptions, signal)
      if (!result) throw new SandboxUnavailableError(new Error('the sandbox does not run'))
      return result
    },
    readLog: (id, logOptions, signal) => readLog(client, sandboxName(id), logOptions, signal),
    async limit(id, resources, signal) {
      const container = await inspect(id, signal)
      if (!container?.State.Running) return noKeptLimits
      if (pathsOf(container).room) await changeLimits(client, roomName(id), resources, signal)
      const changed = await changeLimits(client, container.Id, resources, signal)
      return changed ? keptLimits(container, changed, resources) : noKeptLimits
    },
    diskUse: (ids, signal) => diskUseOf(client, ids, signal),
    async memoryUse(id, signal) {
      const names = [sandboxName(id), roomName(id)]
      const used = await Promise.all(names.map(async (name) => memoryIn(await statsOf(client, name, signal))))
      const known = used.filter((bytes) => bytes !== null)
      return known.length > 0 ? Math.max(...known) : null
    },
    async measure(id, signal) {
      const container = await inspect(id, signal)
      if (!container) return noUsage
      const paths = pathsOf(container)
      const du = ['du', '-sx', '--block-size=1', paths.home]
      const runDu = () => execBeside(client, container.Id, paths, du, { timeoutMs: duTimeoutMs }, signal)
      return measureContainer(client, container, runDu, signal)
    },
    files: (id) => filesBy(sessionsOf(id)),
    filesBatch: (id, use) => filesBatch(sessionsOf(id), use),
  }
}

const pathsOf = ({ Config }: Docker.ContainerInspectInfo): SandboxPaths => JSON.parse(Config.Labels[labels.paths] ?? '')

/**
 * Removes a container, a running one only with force. A container that does not exist, or is being removed, is no
 * error.
 */
const removeContainer = (client: DockerClient, name: string, signal: AbortSignal, { force = true } = {}) =>
  client.callUnless([404, 409], signal, (docker, abortSignal) =>
    docker.getContainer(name).remove({ force, abortSignal }),
  )
