import type { V1Container, V1Volume } from '@kubernetes/client-node'
import type { SupervisorSettings } from '#sandbox/container/image/supervisor.ts'
import {
  forwarderPort,
  gatewayPort,
  home,
  node,
  podPrograms,
  programs,
  roomPrograms,
  roomRoot,
  roomSockets,
  supervisorFlags,
} from '#sandbox/container/layout.ts'
import type { Resources, RoomSpec, SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'
import { openFilesOf } from '#sandbox/open-files.ts'
import type { KubernetesSetup } from './settings.ts'

/** The names of the containers of a pod: a separate `room` has the tools of the agent. */
export const containerNames = { agent: 'agent', room: 'room' } as const
/**
 * Prefix of the command of another program of a pod: a pod runs a moment before its first program has made the folders.
 */
export const withFolders = [
  '/bin/sh',
  '-c',
  `for folder in ${home} /agent/uploads; do [ -d $folder ] || (umask 077; mkdir -p $folder); done; exec "$@"`,
  'sh',
] as const
const roomSocket = 'exec.sock'
/** The part of its limits that the room requests: its programs mostly wait. */
const roomRequestPercent = 1
const idleSeconds = '30'

/** The requirements of the profile `restricted` of the Pod Security Standards for a container, and more. */
const confined = {
  // The image's working folder is in the volume, where the container runtime would create it for root.
  workingDir: '/',
  securityContext: {
    allowPrivilegeEscalation: false,
    readOnlyRootFilesystem: true,
    capabilities: { drop: ['ALL'] },
  },
  volumeMounts: [
    { name: 'agent', mountPath: '/agent' },
    { name: 'tmp', mountPath: '/tmp' },
    { name: 'run', mountPath: '/run/chowder' },
  ],
} satisfies Partial<V1Container>

const roomVolumes: V1Volume[] = [
  { name: 'room-hidden', emptyDir: { medium: 'Memory', sizeLimit: '1Mi' } },
  { name: 'room-run', emptyDir: { sizeLimit: '1Mi' } },
  { name: 'room-tmp', emptyDir: { sizeLimit: '256Mi' } },
  { name: 'room-shm', emptyDir: { medium: 'Memory', sizeLimit: '64Mi' } },
]

/** The volumes mounted by the containers of a pod: the one of a claim, and those that end with the pod. */
export const volumesOf = (claimName: string, { withRoom }: { withRoom: boolean }): V1Volume[] => [
  { name: 'agent', persistentVolumeClaim: { claimName } },
  { name: 'tmp', emptyDir: { sizeLimit: '256Mi' } },
  { name: 'run', emptyDir: { sizeLimit: '1Mi' } },
  ...(withRoom ? roomVolumes : []),
]

/** Kubernetes counts cpus in thousandths. */
const millicpus = (cpus: number) => `${Math.max(1, Math.round(cpus * 1000))}m`

function resourcesOf({ memoryMb, cpus }: Resources, requestPercent: number): NonNullable<V1Container['resources']> {
  const share = requestPercent / 100
  return {
    limits: { memory: `${memoryMb}Mi`, cpu: millicpus(cpus) },
    requests: { memory: `${Math.max(1, Math.round(memoryMb * share))}Mi`, cpu: millicpus(cpus * share) },
  }
}

/** The limits of each process, for the programs of a pod. */
const limitsOf = ({ diskMb, pids }: Pick<Resources, 'diskMb' | 'pids'>) => [diskMb, openFilesOf(pids)].map(String)
const ofFilesPod = { diskMb: 0, pids: 512 }

const variables = (values: Record<string, string>) => Object.entries(values).map(([name, value]) => ({ name, value }))

/** The paths of a sandbox in its container, with the folder of its release there. */
export const containerPaths = (spec: SandboxSpec, release: string, relayUrl: string): SandboxPaths => ({
  ...{ node, release, home, port: gatewayPort },
  ...{ proxy: relayUrl, proxyAsksWho: true },
  ...(spec.room && { room: { ssh: `${roomPrograms}/room-ssh.py`, root: roomRoot } }),
})

/** The container of the gateway of an agent. */
export function agentContainer(
  spec: SandboxSpec,
  image: string,
  paths: SandboxPaths,
  { admission, requestPercent }: KubernetesSetup,
): V1Container {
  const settings: SupervisorSettings = {
    gatewayPort,
    port: forwarderPort,
    admission: { ...admission, tokenFile: `${home}/${admission.tokenFile}` },
  }
  return {
    ...confined,
    name: containerNames.agent,
    image,
    command: [
      ...(spec.room ? [`${podPrograms}/init.sh`, `${home}/${spec.room.socketFolder}/${roomSocket}`] : []),
      ...[`${podPrograms}/start.sh`, ...limitsOf(spec.resources)],
      ...[node, ...supervisorFlags, `${programs}/supervisor.js`, JSON.stringify(settings)],
      ...spec.command(paths),
    ],
    env: variables(spec.env(paths)),
    ports: [{ name: 'gateway', containerPort: forwarderPort }],
    resources: resourcesOf(spec.resources, requestPercent),
    readinessProbe: {
      httpGet: { path: '/readyz', port: forwarderPort as never },
      periodSeconds: 5,
      timeoutSeconds: 3,
    },
  }
}

/**
 * The container where the tools of an agent run, with one folder of the volume. It has no network, and no access to the
 * memory volumes of the pod's other containers.
 */
export function roomContainer(image: string, resources: Resources, room: RoomSpec): V1Container {
  const shared = `${roomRoot}/${room.place}`
  const part = (path: string, mountPath: string) => ({ name: 'agent', subPath: `home/${path}`, mountPath })
  return {
    ...confined,
    name: containerNames.room,
    image,
    command: [`${podPrograms}/room.sh`, ...limitsOf(resources), `${roomSockets}/${roomSocket}`, shared],
    env: variables({ HOME: '/tmp', PATH: '/usr/local/bin:/usr/bin:/bin', LANG: 'C.UTF-8' }),
    resources: resourcesOf(resources, roomRequestPercent),
    volumeMounts: [
      part(room.folder, shared),
      part(room.socketFolder, roomSockets),
      { name: 'room-hidden', mountPath: `${shared}/${room.hidden}`, readOnly: true },
      { name: 'room-run', mountPath: '/run/chowder' },
      { name: 'room-tmp', mountPath: '/tmp' },
      { name: 'room-shm', mountPath: '/dev/shm' },
    ],
  }
}

/** The container of the files program for an agent that does not run. It ends by itself. */
export const filesContainer = (image: string): V1Container => ({
  ...confined,
  name: containerNames.agent,
  image,
  command: [`${podPrograms}/start.sh`, ...limitsOf(ofFilesPod), `${programs}/idle.sh`, idleSeconds],
  resources: { limits: { memory: '512Mi', cpu: '1' }, requests: { memory: '64Mi', cpu: '50m' } },
})
