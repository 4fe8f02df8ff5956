import { createHash } from 'node:crypto'
import type Docker from 'dockerode'
import type { Admission } from '#sandbox/container/image/forwarder.ts'
import type { SupervisorSettings } from '#sandbox/container/image/supervisor.ts'
import {
  agentGid,
  agentUid,
  forwarderPort,
  gatewayPort,
  home,
  node,
  programs,
  roomPrograms,
  roomRoot,
  roomSockets,
  supervisorFlags,
} from '#sandbox/container/layout.ts'
import type { Resources, RoomSpec, SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'
import { openFilesOf } from '#sandbox/open-files.ts'

/** The home in the volume, which is mounted at /agent. */
const volumeHome = 'home'
export const forwarderKey = `${forwarderPort}/tcp`

export const labels = {
  installation: 'chowder.installation',
  instance: 'chowder.instance',
  organization: 'chowder.organization',
  role: 'chowder.role',
  release: 'chowder.release',
  paths: 'chowder.paths',
  spec: 'chowder.spec',
  user: 'chowder.user',
} as const

/** The purpose of a container of Chowder. */
export type Role = 'sandbox' | 'room' | 'files' | 'firewall'

/** The name of an instance's container, and of its volume. */
export const sandboxName = (id: string): string => `chowder-${id}`

/** The user of an instance's containers, and its group. */
export const userOf = (id: string): string => `${agentUid(id)}:${agentGid}`
/** The user of the instances whose volume was made before each had its own: the files belong to it. */
export const sharedUser = `${agentGid}:${agentGid}`

/**
 * The hardware address of an instance's container. The firewall knows agents by its beginning; an agent cannot change it.
 */
const hardwareAddress = (id: string): string => {
  const own = createHash('sha256').update(`hardware address ${id}`).digest('hex').slice(0, 8)
  return `c6:9e:${own.match(/../g)?.join(':')}`
}

/** The labels of an instance's volume. */
export const volumeLabels = (installation: string, id: string): Record<string, string> => ({
  ...ownership(installation, id, 'sandbox'),
  [labels.user]: userOf(id),
})

/** Maximum open files of each process. */
const openFiles = (pids: number) => {
  const limit = openFilesOf(pids)
  return { Name: 'nofile', Soft: limit, Hard: limit }
}
const noCoreFiles = { Name: 'core', Soft: 0, Hard: 0 }
/** When the host runs out of memory, the kernel kills agents first. */
const oomScore = 800
const megabyte = 1024 * 1024

/** The maximum size of a file; 0 megabytes means no limit. */
const fileSize = (diskMb: number) => {
  const limit = diskMb > 0 ? diskMb * megabyte : -1
  return { Name: 'fsize', Soft: limit, Hard: limit }
}

/** The limits of every container. */
const confined: Docker.HostConfig = {
  CapDrop: ['ALL'],
  SecurityOpt: ['no-new-privileges'],
  Privileged: false,
  ReadonlyRootfs: true,
  Init: true,
  RestartPolicy: { Name: 'no' },
  LogConfig: { Type: 'json-file', Config: { 'max-size': '5m', 'max-file': '2' } },
}

/** The folders of a container that end with it; user.sh writes to the second one. */
const temporary = {
  '/tmp': 'rw,exec,nosuid,nodev,size=256m,mode=1777',
  '/run/chowder': 'rw,noexec,nosuid,nodev,size=1m,mode=1777',
}

/** Agents have no name server, since lookups could carry data out. The proxy resolves names. */
export const noNameServer = ['127.0.0.1']

/** The limits that can be changed while a container runs. */
export const limitsOf = ({ memoryMb, cpus, pids }: Resources) => ({
  Memory: memoryMb * megabyte,
  // Memory and swap together: otherwise the agent would swap, and slow down the host.
  MemorySwap: memoryMb * megabyte,
  NanoCpus: Math.round(cpus * 1e9),
  PidsLimit: pids,
})

/** The weight of a container on busy processors: half of the default, which the containers of Chowder have. */
const cpuShares = 512

export interface SandboxSetup {
  installation: string
  image: string
  /** The folder of the release in the image. */
  releaseFolder: string
  network: string
  /** The address of the host for the forwarder's published port; null if it is not published. */
  publishAddress: string | null
  admission: Admission
  /** The user that owns the files of the volume. */
  user: string
  /** The URL of the proxy, if it is the agent's only way to other hosts; null otherwise. */
  proxy: string | null
}

/**
 * The container of a sandbox. Its label `chowder.spec` is a digest of all other options. No option contains a secret,
 * because every user of dockerd sees them.
 */
export function sandboxContainer(spec: SandboxSpec, setup: SandboxSetup): Docker.ContainerCreateOptions {
  const { installation, image, releaseFolder, network, publishAddress, admission, user, proxy } = setup
  const paths: SandboxPaths = {
    ...{ node, release: releaseFolder, home, port: gatewayPort },
    ...(proxy !== null && { proxy, proxyAsksWho: true }),
    ...(spec.room && { room: { ssh: `${roomPrograms}/room-ssh.py`, root: roomRoot } }),
  }
  const settings: SupervisorSettings = {
    gatewayPort,
    port: forwarderPort,
    admission: { ...admission, tokenFile: `${home}/${admission.tokenFile}` },
  }
  const { diskMb } = spec.resources
  const options: Docker.ContainerCreateOptions = {
    name: sandboxName(spec.id),
    Image: image,
    Hostname: 'agent',
    User: user,
    WorkingDir: home,
    Cmd: [
      ...[`${programs}/user.sh`, node, ...supervisorFlags, `${programs}/supervisor.js`, JSON.stringify(settings)],
      ...spec.command(paths),
    ],
    Env: Object.entries(spec.env(paths)).map(([name, value]) => `${name}=${value}`),
    Labels: {
      ...Object.fromEntries(Object.entries(spec.labels).map(([name, value]) => [`chowder.label.${name}`, value])),
      [labels.release]: spec.release,
      [labels.paths]: JSON.stringify(paths),
      ...ownership(installation, spec.id, 'sandbox'),
    },
    ExposedPorts: { [forwarderKey]: {} },
    NetworkingConfig: { EndpointsConfig: { [network]: { MacAddress: hardwareAddress(spec.id) } } },
    HostConfig: {
      ...confined,
      ...limitsOf(spec.resources),
      CpuShares: cpuShares,
      Ulimits: [openFiles(spec.resources.pids), noCoreFiles, fileSize(diskMb)],
      OomScoreAdj: oomScore,
      NetworkMode: network,
      ...(proxy !== null && { Dns: noNameServer }),
      ...(publishAddress !== null && { PortBindings: { [forwarderKey]: [{ HostIp: publishAddress, HostPort: '' }] } }),
      Mounts: [{ Type: 'volume', Source: sandboxName(spec.id), Target: '/agent' }],
      Tmpfs: temporary,
    },
  }
  const digest = createHash('sha256').update(JSON.stringify(options)).digest('hex')
  return {
    ...options,
    Labels: { ...options.Labels, [labels.organization]: spec.organizationId, [labels.spec]: digest },
  }
}

/** The name of the container of an instance's separate room. */
export const roomName = (id: string): string => `${sandboxName(id)}-room`

/**
 * The container of the separate room of a sandbox: its agent's tools run there, with one folder of the sandbox and
 * without a network. It restarts when the agent has ended its program.
 */
export function roomContainer(
  { id, organizationId, resources }: Pick<SandboxSpec, 'id' | 'organizationId' | 'resources'>,
  { folder, socketFolder, place, hidden }: RoomSpec,
  { installation, image, user }: Pick<SandboxSetup, 'installation' | 'image' | 'user'>,
): Docker.ContainerCreateOptions {
  const shared = `${roomRoot}/${place}`
  const part = (path: string, target: string) => ({
    Type: 'volume' as const,
    Source: sandboxName(id),
    Target: target,
    // The types require options for new volumes only.
    VolumeOptions: { NoCopy: true, Subpath: `${volumeHome}/${path}` } as Docker.MountSettings['VolumeOptions'],
  })
  return {
    name: roomName(id),
    Image: image,
    Hostname: 'room',
    User: user,
    WorkingDir: '/',
    Cmd: [`${programs}/user.sh`, `${roomPrograms}/room-server.py`, `${roomSockets}/exec.sock`, shared],
    Env: ['HOME=/tmp', 'PATH=/usr/local/bin:/usr/bin:/bin', 'LANG=C.UTF-8'],
    Labels: { ...ownership(installation, id, 'room'), [labels.organization]: organizationId },
    HostConfig: {
      ...confined,
      RestartPolicy: { Name: 'on-failure' },
      NetworkMode: 'none',
      ...limitsOf(resources),
      CpuShares: cpuShares,
      Ulimits: [openFiles(resources.pids), noCoreFiles, fileSize(resources.diskMb)],
      OomScoreAdj: oomScore,
      Mounts: [part(folder, shared), part(socketFolder, roomSockets)],
      Tmpfs: {
        ...temporary,
        [`${shared}/${hidden}`]: 'ro,noexec,nosuid,nodev,size=4k,mode=0555',
      },
    },
  }
}

/** The labels by which an installation finds its own containers and volumes. */
export const ownership = (installation: string, id: string, role: Role): Record<string, string> => ({
  [labels.installation]: installation,
  [labels.instance]: id,
  [labels.role]: role,
})

/** A container on the volume of a sandbox, for the program that reads and writes its files. It ends by itself. */
export const filesContainer = (
  installation: string,
  id: string,
  name: string,
  image: string,
  user: string,
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
    // Not by the volume's name: dockerd would recreate a deleted volume.
    VolumesFrom: [sandboxName(id)],
    Memory: 512 * 1024 * 1024,
    MemorySwap: 512 * 1024 * 1024,
    NanoCpus: 1e9,
    PidsLimit: 512,
  },
})

/**
 * A container in the host's network that sets the firewall rules of a bridge: that of the agents, whose new connections
 * are bounded, or that of the relay. With a port, the control plane reaches agents on it.
 */
export const firewallContainer = (
  image: string,
  bridge: string,
  of: 'agents' | 'relay',
  port: number | null,
): Docker.ContainerCreateOptions =>
  inHostNetwork(image, [`${programs}/firewall.sh`, bridge, of, ...(port === null ? [] : [String(port)])])

/** The relay's address. */
interface RelayEndpoint {
  address: string
  port: number
  /** Whether it is the host of dockerd. */
  isOnHost: boolean
}

/** The tables and chains of connections to the relay. */
const relayChains = {
  onHost: 'mangle:PREROUTING mangle:INPUT',
  elsewhere: 'filter:DOCKER-USER',
}

/**
 * Permits the containers of a bridge to reach one address and port, and no other host: the proxy is there too. Rejected
 * connections fail at once; dropped ones would make programs wait. The rules must precede those that the firewall has
 * added meanwhile.
 */
const relayRules = `
set -e
anew=$4
rule="-i $1 -d $2 -p tcp --dport $3 -j ACCEPT"
out="-i $1 ! -o $1 -m conntrack ! --ctstate ESTABLISHED,RELATED -j REJECT"
if ! iptables -w 5 -t filter -C DOCKER-USER $out 2>/dev/null; then
  iptables -w 5 -t filter -I DOCKER-USER $out
  echo "added to filter DOCKER-USER"
  anew=anew
fi
for each in $5; do
  table=\${each%:*}
  chain=\${each#*:}
  if iptables -w 5 -t $table -C $chain $rule 2>/dev/null; then
    if [ -z "$anew" ]; then continue; fi
    iptables -w 5 -t $table -D $chain $rule
  fi
  iptables -w 5 -t $table -I $chain $rule
  echo "added to $table $chain"
done`

/** A container in the host's network that permits the containers of a bridge to reach the relay and no other host. */
export const relayContainer = (
  image: string,
  bridge: string,
  { address, port, isOnHost }: RelayEndpoint,
  { anew }: { anew: boolean },
): Docker.ContainerCreateOptions => {
  const chains = isOnHost ? relayChains.onHost : relayChains.elsewhere
  return inHostNetwork(image, [
    ...['/bin/sh', '-c', relayRules, 'sh'],
    ...[bridge, address, String(port), anew ? 'anew' : '', chains],
  ])
}

const inHostNetwork = (image: string, command: string[]): Docker.ContainerCreateOptions => ({
  Image: image,
  User: '0:0',
  Cmd: command,
  Labels: { [labels.role]: 'firewall' },
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
