import { createHash } from 'node:crypto'
import type Docker from 'dockerode'
import type { SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'
import type { Admission } from './image/forwarder.ts'
import type { SupervisorSettings } from './image/supervisor.ts'

/** Paths and numbers that hold in every image; `image/Dockerfile` has them too. */
export const node = '/usr/local/bin/node'
const home = '/agent/home'
export const releasesBase = '/opt/chowder'
export const programs = '/opt/chowder/programs/docker/image'
/** The user that agents run as, and its group. */
export const agentUid = 10_001
const user = `${agentUid}:${agentUid}`
const gatewayPort = 18_789
/** Where the forwarder listens. */
export const forwarderPort = 18_790
export const forwarderKey = `${forwarderPort}/tcp`

/** Small, for a program that does little. */
export const nodeFlags = ['--max-old-space-size=64', '--max-semi-space-size=1']
/** The agent has the same user, and could have a debugger opened in what stands before its gateway. */
const supervisorFlags = [...nodeFlags, '--disable-sigusr1']

export const labels = {
  installation: 'chowder.installation',
  instance: 'chowder.instance',
  organization: 'chowder.organization',
  role: 'chowder.role',
  release: 'chowder.release',
  inside: 'chowder.inside',
  spec: 'chowder.spec',
} as const

export type Role = 'sandbox' | 'files' | 'fence'

/** The names of what belongs to an instance. */
export const sandboxName = (id: string): string => `chowder-${id}`

/** What a container must not do, whatever it is for. */
const confined: Docker.HostConfig = {
  CapDrop: ['ALL'],
  SecurityOpt: ['no-new-privileges'],
  Privileged: false,
  ReadonlyRootfs: true,
  Init: true,
  RestartPolicy: { Name: 'no' },
  LogConfig: { Type: 'json-file', Config: { 'max-size': '5m', 'max-file': '2' } },
}

export interface SandboxSetup {
  installation: string
  /** The image and, in it, the folder of the release. */
  image: string
  releaseFolder: string
  network: string
  /** Whether the forwarder's port is published on this host's loopback. */
  published: boolean
  admission: Admission
}

/**
 * The container of a sandbox. Its `chowder.spec` label tells two that differ apart. Secrets are in none of it: all of it
 * is shown to whoever may ask dockerd.
 */
export function sandboxContainer(spec: SandboxSpec, setup: SandboxSetup): Docker.ContainerCreateOptions {
  const { installation, image, releaseFolder, network, published, admission } = setup
  const paths: SandboxPaths = { node, release: releaseFolder, home, port: gatewayPort }
  const settings: SupervisorSettings = {
    gatewayPort,
    port: forwarderPort,
    admission: { ...admission, tokenFile: `${home}/${admission.tokenFile}` },
  }
  const { memoryMb, cpus, pids } = spec.resources
  const options: Docker.ContainerCreateOptions = {
    name: sandboxName(spec.id),
    Image: image,
    Hostname: 'agent',
    User: user,
    WorkingDir: home,
    Cmd: [node, ...supervisorFlags, `${programs}/supervisor.js`, JSON.stringify(settings), ...spec.command(paths)],
    Env: Object.entries(spec.env(paths)).map(([name, value]) => `${name}=${value}`),
    Labels: {
      ...Object.fromEntries(Object.entries(spec.labels).map(([name, value]) => [`chowder.label.${name}`, value])),
      [labels.release]: spec.release,
      [labels.inside]: JSON.stringify(paths),
      ...ownership(installation, spec.id, 'sandbox'),
    },
    ExposedPorts: { [forwarderKey]: {} },
    HostConfig: {
      ...confined,
      Memory: memoryMb * 1024 * 1024,
      // Together with swap: else what is too much would be swapped out, and slow down the host.
      MemorySwap: memoryMb * 1024 * 1024,
      NanoCpus: Math.round(cpus * 1e9),
      PidsLimit: pids,
      NetworkMode: network,
      ...(published && { PortBindings: { [forwarderKey]: [{ HostIp: '127.0.0.1', HostPort: '' }] } }),
      Mounts: [{ Type: 'volume', Source: sandboxName(spec.id), Target: '/agent' }],
      Tmpfs: { '/tmp': 'rw,exec,nosuid,nodev,size=256m,mode=1777' },
    },
  }
  const digest = createHash('sha256').update(JSON.stringify(options)).digest('hex')
  return {
    ...options,
    Labels: { ...options.Labels, [labels.organization]: spec.organizationId, [labels.spec]: digest },
  }
}

/** Labels by which an installation finds what is its own. */
export const ownership = (installation: string, id: string, role: Role): Record<string, string> => ({
  [labels.installation]: installation,
  [labels.instance]: id,
  [labels.role]: role,
})

/** A container beside a sandbox, on the same volume, in which its files are reached. It ends by itself. */
export const filesContainer = (
  installation: string,
  id: string,
  name: string,
  image: string,
): Docker.ContainerCreateOptions => ({
  name,
  Image: image,
  User: user,
  Cmd: [`${programs}/idle.sh`, '30'],
  Labels: ownership(installation, id, 'files'),
  HostConfig: {
    ...confined,
    AutoRemove: true,
    NetworkMode: 'none',
    // Of the sandbox's container and not by the volume's name: dockerd would make a volume that is gone.
    VolumesFrom: [sandboxName(id)],
    Memory: 512 * 1024 * 1024,
    MemorySwap: 512 * 1024 * 1024,
    NanoCpus: 1e9,
    PidsLimit: 512,
  },
})

/** A container in the host's network that puts the rules around a bridge in place, and nothing else. */
export const fenceContainer = (image: string, bridge: string, port: number | null): Docker.ContainerCreateOptions => ({
  Image: image,
  User: '0:0',
  Cmd: [`${programs}/fence.sh`, bridge, ...(port === null ? [] : [String(port)])],
  Labels: { [labels.role]: 'fence' },
  HostConfig: {
    ...confined,
    AutoRemove: true,
    CapAdd: ['NET_ADMIN'],
    NetworkMode: 'host',
    UsernsMode: 'host',
    Tmpfs: { '/run': 'rw,nosuid,nodev,size=1m' },
    Memory: 64 * 1024 * 1024,
    PidsLimit: 64,
  },
})
