import { join } from 'node:path'
import { inject } from 'vitest'
import type { TestProject } from 'vitest/node'
import { dockerSettings } from '#composition/docker-settings.ts'
import { createDocker } from '#composition/sandboxes.ts'
import { releaseImage } from '#openclaw/release/release-image.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { freePort } from '#platform/free-port.ts'
import { imageBuild } from '#sandbox/container/image.ts'
import { loadConfig } from '#settings/config.ts'
import { startDockerd, type TestDockerd } from './dockerd.ts'
import { type Outside, openOutside, serveOutside } from './outside.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The dockerd whose containers hold the agents of the end-to-end tests; null when agents run on this host. */
    agentDockerHost: string | null
    /** The folder of the cluster whose pods hold the agents; null when they are elsewhere. */
    agentCluster: string | null
    /** Where agents reach servers of tests as those of another host; null without root. */
    outside: Pick<Outside, 'name' | 'address'> | null
  }
}

const buildMs = 15 * 60_000
/** Where the tests have other hosts: it is not public. */
const allowOutside = { EGRESS_ALLOWED_HOSTS: '198.51.100.0/24:*' }

/** Chowder's settings for agents in containers of a dockerd. */
export function dockerEnv(dockerHost: string): Record<string, string> {
  const { NODE_EXTRA_CA_CERTS } = process.env
  return {
    SANDBOX_DRIVER: 'docker',
    DOCKER_HOST: dockerHost,
    DOCKER_BUILD_NETWORK: 'host',
    ...allowOutside,
    ...(NODE_EXTRA_CA_CERTS && { DOCKER_EXTRA_CA_FILE: NODE_EXTRA_CA_CERTS }),
  }
}

/** Builds the image of the default release unless it exists. */
export async function prepareImage(dockerHost: string): Promise<void> {
  const options = { ...(await dockerSettings(loadConfig(dockerEnv(dockerHost)))), installation: '' }
  const driver = await createDocker(options)
  await driver.prepare(defaultRelease, (line) => console.log(line), AbortSignal.timeout(buildMs))
}

/** Builds the image of the default release as a Chowder in the given cluster repository asks for it. Returns its name. */
export async function buildPodImage({ host, docker }: TestDockerd, repository: string): Promise<string> {
  await prepareImage(host)
  const source = releaseImage(defaultRelease)
  const build = { network: 'default', nodeImage: 'node:24-slim' }
  const { DOCKER_EXTRA_CA_FILE = null } = dockerEnv(host)
  const built = await imageBuild(defaultRelease, source, { ...build, extraCaFile: DOCKER_EXTRA_CA_FILE })
  // Chowder there does not know the certificates that a build here may need: it asks for another tag.
  const wanted = await imageBuild(defaultRelease, source, { ...build, extraCaFile: null })
  const name = `${repository}:${wanted.name.split(':')[1]}`
  await docker('tag', built.name, name)
  return name
}

/** The ports of relays that pods know, by the installation that has them. */
const relayPorts = new Map<string, Promise<number>>()

/** Chowder's settings for agents in pods of a cluster, for the same installation the same. */
async function podEnv(clusterFolder: string, installation: string): Promise<Record<string, string>> {
  const { namespace, podGateway, repository } = await import('./kubernetes-cluster.ts')
  const chosen = relayPorts.get(installation) ?? freePort()
  relayPorts.set(installation, chosen)
  const port = await chosen
  return {
    SANDBOX_DRIVER: 'kubernetes',
    KUBECONFIG: join(clusterFolder, 'chowder.conf'),
    KUBERNETES_NAMESPACE: namespace,
    KUBERNETES_IMAGE: repository,
    KUBERNETES_REQUEST_PERCENT: '5', // a test has more agents than the node has processors
    RELAY_PORT: String(port),
    RELAY_URL: `http://${podGateway}:${port}`,
    ...allowOutside,
  }
}

/**
 * Returns the URL by which agents reach a test's server that listens on the loopback of this host. Without root it is
 * that URL, which agents reach without a jail alone.
 */
export async function forAgents(url: string): Promise<string> {
  const outside = inject('outside')
  if (!outside) return url
  await serveOutside(outside.name, Number(new URL(url).port))
  return url.replace(/127\.0\.0\.1|localhost/, outside.address)
}

/**
 * Chowder's settings for the sandbox driver of this run and for a model provider that the agents reach. An installation
 * that runs beside another one of a test file has a name.
 */
export async function agentEnv(providerUrl: string, installation = ''): Promise<Record<string, string>> {
  const dockerHost = inject('agentDockerHost')
  const cluster = inject('agentCluster')
  return {
    ...(inject('outside') ? allowOutside : { LOCAL_ISOLATION: 'none' }),
    ...(dockerHost !== null && dockerEnv(dockerHost)),
    ...(cluster !== null && (await podEnv(cluster, installation))),
    ANTHROPIC_BASE_URL: providerUrl, // the relay asks it, which runs on this host
  }
}

/**
 * A global setup of Vitest: under root it opens a namespace that looks like another host. With TEST_SANDBOX_DRIVER=docker
 * it also starts a dockerd, whose containers hold the agents, and with =kubernetes a cluster of one node.
 */
export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const isRoot = process.getuid?.() === 0
  project.provide('agentDockerHost', null)
  project.provide('agentCluster', null)
  project.provide('outside', null)
  if (!isRoot) return
  const outside = await openOutside()
  project.provide('outside', { name: outside.name, address: outside.address })
  const { TEST_SANDBOX_DRIVER } = process.env
  if (TEST_SANDBOX_DRIVER !== 'docker' && TEST_SANDBOX_DRIVER !== 'kubernetes') return outside.close
  const dockerd = await startDockerd()
  if (TEST_SANDBOX_DRIVER === 'docker') {
    await prepareImage(dockerd.host)
    project.provide('agentDockerHost', dockerd.host)
    return async () => {
      await outside.close()
      await dockerd.close()
    }
  }
  const { repository, startCluster } = await import('./kubernetes-cluster.ts')
  const image = await buildPodImage(dockerd, repository)
  const cluster = await startCluster()
  await cluster.load(dockerd.host, [image])
  await dockerd.close()
  project.provide('agentCluster', cluster.folder)
  return async () => {
    await outside.close()
    await cluster.close()
  }
}
