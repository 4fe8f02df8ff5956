import type Docker from 'dockerode'
import {
  type Observation,
  SandboxAbsentError,
  type SandboxDriver,
  type SandboxPaths,
  type SandboxSpec,
  SandboxUnavailableError,
} from '#sandbox/driver.ts'
import { pause } from '#sandbox/pause.ts'
import { createDockerClient, type DockerClient, inBody } from './engine.ts'
import { execBeside, startProgram } from './exec.ts'
import { type FilesPool, filesBy, filesPool } from './files.ts'
import { createFilesSession } from './files-session.ts'
import type { Admission } from './image/forwarder.ts'
import { createImages, type ReleaseSource } from './image.ts'
import { agentsNetwork } from './network.ts'
import { readOutput } from './output.ts'
import {
  filesContainer,
  forwarderKey,
  forwarderPort,
  labels,
  node,
  nodeFlags,
  ownership,
  programs,
  releasesBase,
  sandboxContainer,
  sandboxName,
} from './profile.ts'

export interface DockerDriverOptions {
  /** Whose sandboxes these are: others on the same host are not seen. */
  installation: string
  /** As of DOCKER_HOST: `unix:///path` or `tcp://host:port`. */
  host: string
  /**
   * Where gateways are dialled: at a port of this host's loopback, or at their containers' addresses, by a control plane
   * that is itself in a container of their network.
   */
  reach: 'published' | 'network'
  /** The name of the agents' network, and of its bridge. */
  network: string
  buildNetwork: string
  extraCaFile: string | null
  releaseSource(release: string): ReleaseSource
  /** Who is let through to a gateway. */
  admission: Admission
}

/** What dockerd needs besides the grace time. */
const stopMarginMs = 20_000
const logsDeadlineMs = 15_000
const maxLogBytes = 64 * 1024
const attempts = 10
const retryMs = 200
const noMoreMemory = 137

const isolation = {
  published:
    'Each agent is a container without privileges, kept from the services of this host, from the cloud’s metadata service and from other agents.',
  network:
    'Each agent is a container without privileges, kept from the services of this host and from the cloud’s metadata service; of other agents it reaches only the port that asks for their token.',
}

/**
 * Opens the sandboxes of an installation on the host of a dockerd: for each instance a container and a volume, named by
 * its id. They live on when this process ends. Nothing is asked of dockerd yet. Throws a StartupError for a bad address.
 */
export function createDockerDriver(options: DockerDriverOptions): SandboxDriver {
  const { installation, reach, admission } = options
  const engine = createDockerClient(options.host)
  const images = createImages(engine, options.releaseSource, {
    network: options.buildNetwork,
    extraCaFile: options.extraCaFile,
  })
  const network = agentsNetwork(engine, options.network, { reachable: reach === 'network' })
  const pools = new Map<string, FilesPool>()

  const inspect = (id: string, signal: AbortSignal) =>
    engine.callUnless([404], signal, (docker, abortSignal) =>
      docker.getContainer(sandboxName(id)).inspect({ abortSignal }),
    )

  async function existing(id: string, signal: AbortSignal): Promise<Docker.ContainerInspectInfo> {
    const container = await inspect(id, signal)
    if (!container) throw new SandboxAbsentError(`there is no sandbox ${id}`)
    return container
  }

  /** null while the container has none. */
  function endpointOf(id: string, { NetworkSettings }: Docker.ContainerInspectInfo): Observation['endpoint'] {
    if (reach === 'network') {
      // Not the address: once it has ended, dockerd gives that to the next container.
      const isThere = Boolean(NetworkSettings.Networks[options.network]?.IPAddress)
      return isThere ? { kind: 'tcp', host: sandboxName(id), port: forwarderPort } : null
    }
    const published = NetworkSettings.Ports[forwarderKey]?.[0]
    return published ? { kind: 'tcp', host: published.HostIp, port: Number(published.HostPort) } : null
  }

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    const image = await images.nameOf(spec.release)
    const wanted = sandboxContainer(spec, {
      installation,
      image,
      releaseFolder: options.releaseSource(spec.release).folder(releasesBase),
      network: options.network,
      published: reach === 'published',
      admission,
    })
    const name = sandboxName(spec.id)
    const old = await inspect(spec.id, signal)
    if (old?.State.Running || (old && old.Config.Labels[labels.spec] === wanted.Labels?.[labels.spec])) return
    // A crash from here on leaves the volume, which the next create finds, or the container without its network.
    if (old) await removeContainer(engine, old.Id, signal, { force: false })
    await engine.call(signal, (docker, abortSignal) =>
      docker.createVolume({
        ...inBody({ Name: name, Labels: ownership(installation, spec.id, 'sandbox') }),
        abortSignal,
      }),
    )
    await network.make(signal)
    // Another create, or a start, may have been quicker: that container holds.
    await engine.callUnless([409], signal, (docker, abortSignal) =>
      docker.createContainer({ ...inBody(wanted), abortSignal }),
    )
  }

  async function start(id: string, signal: AbortSignal): Promise<void> {
    const { State, Image } = await existing(id, signal)
    if (State.Running) return
    await network.make(signal)
    await network.fence(Image, signal)
    const started = await engine.callUnless([404], signal, async (docker, abortSignal) => {
      await docker
        .getContainer(sandboxName(id))
        .start({ abortSignal })
        .catch((error) => {
          if (error.statusCode !== 304) throw error // another start was quicker
        })
      return true
    })
    if (started) return
    // Or what it was made with is gone: its network, made anew since, is another to dockerd. What it holds is in its volume.
    await removeContainer(engine, sandboxName(id), signal, { force: false })
    throw new SandboxAbsentError(`there is no sandbox ${id}`)
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    await engine.callUnless(
      [304, 404],
      signal,
      (docker, abortSignal) => docker.getContainer(sandboxName(id)).stop({ t: Math.ceil(graceMs / 1000), abortSignal }),
      { deadlineMs: graceMs + stopMarginMs },
    )
  }

  async function destroy(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    pools.get(id)?.clear()
    for (let attempt = 1; ; attempt += 1) {
      await removeContainer(engine, sandboxName(id), signal)
      for (const { Id } of await containersOf([`${labels.instance}=${id}`], signal)) {
        await removeContainer(engine, Id, signal)
      }
      const left = await engine.callUnless([404], signal, (docker, abortSignal) =>
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
      if (!left) return
      // A container that is going, or that another process has just made to reach the files.
      if (attempt === attempts) throw new SandboxUnavailableError(left)
      await pause(retryMs, signal)
    }
  }

  const containersOf = (label: string[], signal: AbortSignal) =>
    engine.call(signal, (docker, abortSignal) =>
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
    return { ...stopped, exit: { code: ExitCode, oom: OOMKilled && ExitCode === noMoreMemory } }
  }

  async function* list(signal: AbortSignal) {
    const seen = new Set<string>()
    for (const { Labels, State } of await containersOf([`${labels.role}=sandbox`], signal)) {
      const id = Labels[labels.instance] ?? ''
      seen.add(id)
      yield { id, state: State === 'running' || State === 'paused' ? ('running' as const) : ('stopped' as const) }
    }
    // A volume without a container is half-made or half-removed: it must not be forgotten.
    const { Volumes } = await engine.call(signal, (docker, abortSignal) =>
      docker.listVolumes({ filters: { label: [`${labels.installation}=${installation}`] }, abortSignal }),
    )
    for (const { Labels } of Volumes ?? []) {
      const id = Labels?.[labels.instance] ?? ''
      if (!seen.has(id)) yield { id, state: 'stopped' as const }
    }
  }

  /** The files program in the container beside the sandbox, which is started if none is there. */
  async function openSession(id: string, signal: AbortSignal) {
    for (let attempt = 1; ; attempt += 1) {
      const { Image, Config } = await existing(id, signal)
      // The programs of this very version if there is an image of it, whatever the sandbox was made with.
      const current = await images.nameOf(Config.Labels[labels.release] ?? '').catch(() => null)
      const image = current && (await images.exists(current, signal)) ? current : Image
      const name = `${sandboxName(id)}-files-${image.slice(-12)}`
      const program = { Cmd: [node, ...nodeFlags, `${programs}/files-program.js`] }
      const running = await startProgram(engine, name, program, signal)
      if (running) return createFilesSession(running.socket)
      if (attempt === attempts) throw new SandboxUnavailableError(new Error(`the container ${name} does not start`))
      const container = filesContainer(installation, id, name, image)
      // Absent by now is the sandbox, or this container, which has just ended; a conflict is another's that was quicker.
      await engine.callUnless([404, 409], signal, (docker, abortSignal) =>
        docker.createContainer({ ...inBody(container), abortSignal }),
      )
      await engine.callUnless([304, 404, 409], signal, (docker, abortSignal) =>
        docker.getContainer(name).start({ abortSignal }),
      )
      if (attempt > 1) await pause(retryMs, signal)
    }
  }

  return {
    name: 'docker',
    isolation: isolation[reach],
    create,
    start,
    stop,
    destroy,
    observe,
    list,
    prepare: (release, progress, signal) => images.make(release, progress, signal),
    // The image holds every plugin of its release.
    prepareChannel: (release, _channel, progress, signal) => images.make(release, progress, signal),
    async exec(id, argv, execOptions, signal) {
      const paths = pathsOf(await existing(id, signal))
      const result = await execBeside(engine, sandboxName(id), paths, argv, execOptions, signal)
      if (!result) throw new SandboxUnavailableError(new Error('the sandbox does not run'))
      return result
    },
    async logs(id, lines) {
      const chunks = await engine.callUnless(
        [404],
        AbortSignal.timeout(logsDeadlineMs),
        async (docker, abortSignal) => {
          const logs = await docker
            .getContainer(sandboxName(id))
            .logs({ stdout: true, stderr: true, tail: lines, abortSignal })
          const found: Buffer[] = []
          for await (const { bytes } of readOutput(only(logs))) found.push(bytes)
          return found
        },
      )
      const text = Buffer.concat(chunks ?? [])
        .subarray(-maxLogBytes)
        .toString()
      return text.replace(/\n$/, '').split('\n').slice(-lines).join('\n')
    },
    files(id) {
      let pool = pools.get(id)
      if (!pool) {
        pool = filesPool(
          (signal) => openSession(id, signal),
          () => pools.delete(id),
        )
        pools.set(id, pool)
      }
      return filesBy(pool)
    },
  }
}

const pathsOf = ({ Config }: Docker.ContainerInspectInfo): SandboxPaths =>
  JSON.parse(Config.Labels[labels.inside] ?? '')

async function* only(bytes: Buffer): AsyncGenerator<Buffer, void> {
  yield bytes
}

/** Removes a container, one that runs only by force; none, or one that is going already, is fine. */
const removeContainer = (engine: DockerClient, name: string, signal: AbortSignal, { force = true } = {}) =>
  engine.callUnless([404, 409], signal, (docker, abortSignal) =>
    docker.getContainer(name).remove({ force, abortSignal }),
  )
