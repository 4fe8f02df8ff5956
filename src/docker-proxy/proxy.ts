import { mkdir } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import type { Logger } from '#platform/log.ts'
import { type BuildOptions, imageBuild, type ReleaseSource } from '#sandbox/container/image.ts'
import type { DockerdAddress } from '#sandbox/docker/docker-client.ts'
import type { Networks, Share } from './call.ts'
import { callsOf } from './calls.ts'
import { createDockerd } from './dockerd.ts'
import { type ServedCalls, serveCalls } from './serve.ts'

export interface DockerProxyOptions {
  /** The address of the real dockerd. */
  dockerd: DockerdAddress
  /** The folder of the sockets. */
  folder: string
  network: string
  /** The relay's network to other hosts, if the relay is in a container as well. */
  egressNetwork: string | null
  build: BuildOptions
  /** The releases whose images may be built. */
  releases: readonly string[]
  releaseSource(release: string): ReleaseSource
}

export const proxySocket = (folder: string, share: Share): string => join(folder, share, 'docker.sock')

/** Serves both shares of dockerd, each on its own socket. Throws a StartupError for a bad address. */
export async function createDockerProxy(options: DockerProxyOptions, log: Logger): Promise<ServedCalls> {
  const { folder, network, egressNetwork, build, releases, releaseSource } = options
  const dockerd = createDockerd(options.dockerd)
  const builds = () => Promise.all(releases.map((release) => imageBuild(release, releaseSource(release), build)))
  const networks: Networks = egressNetwork === null ? [network] : [network, egressNetwork]
  const served = await Promise.all(
    (['api', 'worker'] as const).map(async (share) => {
      const path = proxySocket(folder, share)
      await mkdir(dirname(path), { recursive: true })
      return serveCalls({ path, share, calls: callsOf(share, { dockerd, networks, builds }), dockerd }, log)
    }),
  )
  return {
    async close() {
      await Promise.all(served.map((share) => share.close()))
    },
  }
}
