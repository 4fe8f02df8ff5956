import { fileURLToPath } from 'node:url'
import { pino } from 'pino'
import { createDockerProxy } from '#docker-proxy/proxy.ts'
import type { ReleaseSource } from '#sandbox/container/image.ts'
import { createDockerDriver } from '#sandbox/docker/driver.ts'
import type { SandboxDriver, SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'

/** A release whose gateway is a small program. */
export const contractRelease: ReleaseSource = {
  root: fileURLToPath(new URL('../..', import.meta.url)),
  files: ['test/support/contract-gateway.mjs'],
  install: 'cp -r test/support',
  folder: (base) => `${base}/support`,
}

export const contractBuild = { network: 'host', extraCaFile: null, nodeImage: 'node:24-slim' }

/** The driver of an installation on a dockerd, with sandboxes whose gateway is a small program. */
export const contractDriver = (host: string, installation: string, overrides = {}): SandboxDriver =>
  createDockerDriver({
    installation,
    dockerd: { host, tls: null },
    publishAddress: '127.0.0.1',
    network: 'chowder-test',
    egressNetwork: null,
    relayPort: null,
    relayUrl: null,
    buildNetwork: contractBuild.network,
    extraCaFile: contractBuild.extraCaFile,
    nodeImage: contractBuild.nodeImage,
    releaseSource: () => contractRelease,
    admission: { tokenFile: 'token.json', tokenKeys: ['token'], openPaths: ['/healthz'] },
    ...overrides,
  })

/** The shares of a dockerd, for such sandboxes, whose relay has a way out of its own. */
export const contractProxy = (host: string, folder: string) =>
  createDockerProxy(
    {
      dockerd: { host, tls: null },
      folder,
      network: 'chowder-test',
      egressNetwork: 'chowder-out',
      build: contractBuild,
      releases: ['v1'],
      releaseSource: () => contractRelease,
    },
    pino({ level: 'silent' }),
  )

export const contractCommand = ({ node, release, port }: SandboxPaths, ...manner: string[]): string[] => [
  node,
  `${release}/contract-gateway.mjs`,
  String(port),
  ...manner,
]

export const contractSpec = (id: string, overrides: Partial<SandboxSpec> = {}): SandboxSpec => ({
  id,
  organizationId: 'organization',
  release: 'v1',
  command: (paths) => contractCommand(paths),
  env: ({ home }) => ({ HOME: home, PATH: '/usr/bin:/bin', MARK: id }),
  resources: { memoryMb: 512, cpus: 1, pids: 64, diskMb: 0 },
  labels: { organization: 'organization' },
  ...overrides,
})
