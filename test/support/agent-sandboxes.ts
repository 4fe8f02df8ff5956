import { inject } from 'vitest'
import type { TestProject } from 'vitest/node'
import { dockerSettings } from '#composition/docker-settings.ts'
import { createDocker } from '#composition/sandboxes.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { loadConfig } from '#platform/config.ts'
import { startDockerd } from './dockerd.ts'
import { type Outside, openOutside, serveOutside } from './outside.ts'

declare module 'vitest' {
  interface ProvidedContext {
    /** The dockerd whose containers hold the agents of the end-to-end tests; null when agents run on this host. */
    agentDockerHost: string | null
    /** Where agents reach servers of tests as those of another host; null without root. */
    outside: Pick<Outside, 'name' | 'address'> | null
  }
}

const buildMs = 15 * 60_000
/** Where the tests have other hosts: it is not public. */
const allowOutside = { EGRESS_ALLOWED_HOSTS: '203.0.113.0/24:*' }

/** Chowder's settings for agents in containers of a dockerd. */
export function dockerEnv(dockerHost: string): Record<string, string> {
  const { NODE_EXTRA_CA_CERTS } = process.env
  return {
    SANDBOX_DRIVER: 'docker',
    DOCKER_HOST: dockerHost,
    DOCKER_NETWORK: 'chowder-test',
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

/** Chowder's settings for the sandbox driver of this run and for a model provider that the agents reach. */
export async function agentEnv(providerUrl: string): Promise<Record<string, string>> {
  const dockerHost = inject('agentDockerHost')
  return {
    ...(inject('outside') ? allowOutside : { LOCAL_ISOLATION: 'none' }),
    ...(dockerHost !== null && dockerEnv(dockerHost)),
    ANTHROPIC_BASE_URL: providerUrl, // the relay asks it, which runs on this host
  }
}

/**
 * A global setup of Vitest: under root it opens a namespace that looks like another host, and with TEST_SANDBOX_DRIVER=docker it
 * starts a dockerd, whose containers hold the agents.
 */
export default async function setup(project: TestProject): Promise<(() => Promise<void>) | undefined> {
  const isRoot = process.getuid?.() === 0
  project.provide('agentDockerHost', null)
  project.provide('outside', null)
  if (!isRoot) return
  const outside = await openOutside()
  project.provide('outside', { name: outside.name, address: outside.address })
  if (process.env.TEST_SANDBOX_DRIVER !== 'docker') return outside.close
  const dockerd = await startDockerd()
  await prepareImage(dockerd.host)
  project.provide('agentDockerHost', dockerd.host)
  return async () => {
    await outside.close()
    await dockerd.close()
  }
}
