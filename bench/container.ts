import { once } from 'node:events'
import { buffer } from 'node:stream/consumers'
import type Docker from 'dockerode'
import { extract, pack } from 'tar-stream'
import { configPath, gatewayFolders, secretsPath } from '#openclaw/launch.ts'
import type { DockerClient } from '#sandbox/docker/docker-client.ts'
import { forwarderKey, sandboxName } from '#sandbox/docker/profile.ts'
import { answers, until } from './agents.ts'

const home = '/agent/home'
const agent = { uid: 10_001, gid: 10_001 }
const stopGraceSeconds = 10
/** As long as the longest call here, a stop, may take. */
const callTimeoutMs = 60_000

/** Everything it takes to start an instance's container again, under another name. */
export interface Recipe {
  container: Docker.ContainerInspectInfo
  files: readonly GatewayFile[]
}

interface GatewayFile {
  name: string
  content: Buffer
}

const call = <T>(client: DockerClient, ask: (docker: Docker) => Promise<T>): Promise<T> =>
  client.call(AbortSignal.timeout(callTimeoutMs), ask, { deadlineMs: callTimeoutMs })

/** Reads the recipe off a sandbox that Chowder has made. */
export const recipeOf = (client: DockerClient, id: string): Promise<Recipe> =>
  call(client, async (docker) => {
    const sandbox = docker.getContainer(sandboxName(id))
    const container = await sandbox.inspect()
    const files: GatewayFile[] = []
    for (const name of [configPath, secretsPath]) {
      const archive = extract()
      const content = once(archive, 'entry').then(async ([, entry, next]) => {
        const bytes = await buffer(entry)
        next()
        return bytes
      })
      ;(await sandbox.getArchive({ path: `${home}/${name}` })).pipe(archive)
      files.push({ name, content: await content })
    }
    return { container, files }
  })

/** The files that a gateway finds at its first start. */
function archiveOf(files: readonly GatewayFile[]): NodeJS.ReadableStream {
  const tar = pack()
  for (const name of gatewayFolders) tar.entry({ name, type: 'directory', mode: 0o700, ...agent })
  for (const { name, content } of files) tar.entry({ name, mode: 0o600, ...agent }, content)
  tar.finalize()
  return tar as unknown as NodeJS.ReadableStream
}

/** A container whose gateway ends before it was ready is started again, as Chowder does, and counted by `ended`. */
async function untilReady(client: DockerClient, name: string, timeoutMs: number, ended: () => void): Promise<void> {
  await until(`${name} ready`, timeoutMs, async () => {
    const { NetworkSettings, State } = await call(client, (docker) => docker.getContainer(name).inspect())
    if (State.Running) return answers(Number(NetworkSettings.Ports[forwarderKey]?.[0]?.HostPort), '/startupz')
    ended()
    await call(client, (docker) => docker.getContainer(name).start())
    return false
  })
}

const mustNotEnd = () => {
  throw new Error('a gateway that was started by hand ended while it started')
}

/**
 * Makes and starts the same container on the same configuration, on a new volume; resolves once its gateway is ready.
 */
export async function startByHand(
  client: DockerClient,
  recipe: Recipe,
  name: string,
  timeoutMs: number,
  ended: () => void = mustNotEnd,
): Promise<void> {
  const { Config, HostConfig } = recipe.container
  const { Image, Hostname, User, WorkingDir, Cmd, Env, ExposedPorts } = Config
  await call(client, async (docker) => {
    await docker.createVolume({ Name: name })
    const Mounts: Docker.MountConfig = [{ Type: 'volume', Source: name, Target: '/agent' }]
    const options = { name, Image, Hostname, User, WorkingDir, Cmd, Env, ExposedPorts }
    const container = await docker.createContainer({ ...options, HostConfig: { ...HostConfig, Mounts } })
    await container.putArchive(archiveOf(recipe.files), { path: home })
    await container.start()
  })
  await untilReady(client, name, timeoutMs, ended)
}

/** Stops a container and starts it again; resolves once its gateway is ready. */
export async function restartByHand(client: DockerClient, name: string, timeoutMs: number): Promise<void> {
  await call(client, async (docker) => {
    await docker.getContainer(name).stop({ t: stopGraceSeconds })
    await docker.getContainer(name).start()
  })
  await untilReady(client, name, timeoutMs, mustNotEnd)
}

/** Removes a container with its volume, whether it runs or not. */
export const removeByHand = (client: DockerClient, name: string): Promise<void> =>
  call(client, async (docker) => {
    await docker.getContainer(name).remove({ force: true })
    await docker.getVolume(name).remove()
  })

export const exists = async (client: DockerClient, id: string): Promise<boolean> =>
  (await client.callUnless([404], AbortSignal.timeout(callTimeoutMs), (docker) =>
    docker.getContainer(sandboxName(id)).inspect(),
  )) !== null

/** Removes a network with all containers on it and their volumes, should any of it be left. */
export const removeNetwork = (client: DockerClient, network: string): Promise<void> =>
  call(client, async (docker) => {
    for (const { Id, Mounts } of await docker.listContainers({ all: true, filters: { network: [network] } })) {
      await docker.getContainer(Id).remove({ force: true })
      for (const { Name } of Mounts) if (Name) await docker.getVolume(Name).remove({ force: true })
    }
    await docker
      .getNetwork(network)
      .remove()
      .catch((error) => {
        if (error.statusCode !== 404) throw error
      })
  })

/** How large an image is in bytes, in all and beyond the one that it was built from; null without it on the host. */
export const imageSize = (
  client: DockerClient,
  name: string,
  base: string,
): Promise<{ all: number; own: number } | null> =>
  call(client, async (docker) => {
    const sizeOf = (image: string) =>
      docker
        .getImage(image)
        .inspect()
        .then(
          ({ Size }) => Size,
          () => null,
        )
    const [all, below] = [await sizeOf(name), await sizeOf(base)]
    return all === null ? null : { all, own: all - (below ?? 0) }
  })
