import { createHash } from 'node:crypto'
import type {
  V1NetworkPolicy,
  V1PersistentVolumeClaim,
  V1Pod,
  V1PodSpec,
  V1Service,
  V1StatefulSet,
} from '@kubernetes/client-node'
import { agentGid, agentUid, forwarderPort, releasesBase } from '#sandbox/container/layout.ts'
import type { SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'
import { agentContainer, containerPaths, filesContainer, roomContainer, volumesOf } from './containers.ts'
import type { KubernetesSetup } from './settings.ts'

/** The default of the pod; a stop sets another time. */
const graceSeconds = 30
const filesSeconds = 600

export const labels = {
  managedBy: 'app.kubernetes.io/managed-by',
  installation: 'chowder.dev/installation',
  instance: 'chowder.dev/instance',
  organization: 'chowder.dev/organization',
  role: 'chowder.dev/role',
} as const

export const annotations = {
  paths: 'chowder.dev/paths',
  release: 'chowder.dev/release',
  spec: 'chowder.dev/spec',
} as const

/** The name of an instance's objects, except its pods. */
export const objectName = (id: string): string => `chowder-${id}`
/** StatefulSets number their pods. */
export const podName = (id: string): string => `${objectName(id)}-0`
export const filesPodName = (id: string): string => `${objectName(id)}-files`

const ownership = (installation: string, id: string, role: 'sandbox' | 'files'): Record<string, string> => ({
  [labels.managedBy]: 'chowder',
  [labels.installation]: installation,
  [labels.instance]: id,
  [labels.role]: role,
})

/** The selector of the sandboxes of an installation. */
export const selectorOf = (installation: string): string =>
  `${labels.installation}=${installation},${labels.role}=sandbox`

/** The requirements of the profile `restricted` of the Pod Security Standards for a pod, and more. */
const confinedPod = (uid: number): Partial<V1PodSpec> => ({
  automountServiceAccountToken: false,
  enableServiceLinks: false,
  securityContext: {
    runAsNonRoot: true,
    // Not `hostUsers: false`: what a user namespace uses also counts as its maker's, who is root for all pods.
    runAsUser: uid,
    runAsGroup: agentGid,
    fsGroup: agentGid,
    // Otherwise each start would change the group of all files.
    fsGroupChangePolicy: 'OnRootMismatch',
    seccompProfile: { type: 'RuntimeDefault' },
  },
})

const placement = ({ runtimeClass }: KubernetesSetup): Partial<V1PodSpec> => ({
  ...(runtimeClass !== null && { runtimeClassName: runtimeClass }),
})

/** The relay, with the address of its name: pods resolve no names. */
export interface RelayPlace {
  url: string
  host: string
  address: string
  port: number
}

/** The agent has no name server, since lookups could carry data out. */
const namesOf = ({ host, address }: Pick<RelayPlace, 'host' | 'address'>): Partial<V1PodSpec> => ({
  dnsPolicy: 'None',
  dnsConfig: { nameservers: ['127.0.0.1'] },
  ...(host !== address && { hostAliases: [{ ip: address, hostnames: [host] }] }),
})

export function pathsOf(set: V1StatefulSet): SandboxPaths {
  return JSON.parse(set.metadata?.annotations?.[annotations.paths] ?? '')
}

/**
 * The StatefulSet of a sandbox, with no replica. Its annotation `chowder.dev/spec` is a digest of all other fields. It
 * contains no secrets: every reader of the namespace's objects sees it.
 */
export function statefulSet(
  spec: SandboxSpec,
  image: string,
  releaseFolder: string,
  setup: KubernetesSetup,
  relay: RelayPlace,
  uid: number,
): V1StatefulSet {
  const paths = containerPaths(spec, releaseFolder, relay.url)
  const own = ownership(setup.installation, spec.id, 'sandbox')
  const wanted: V1StatefulSet = {
    apiVersion: 'apps/v1',
    kind: 'StatefulSet',
    metadata: {
      name: objectName(spec.id),
      labels: own,
      annotations: {
        ...Object.fromEntries(Object.entries(spec.labels).map(([name, value]) => [`chowder.dev/label.${name}`, value])),
        [annotations.release]: spec.release,
        [annotations.paths]: JSON.stringify(paths),
      },
    },
    spec: {
      replicas: 0,
      serviceName: objectName(spec.id),
      selector: { matchLabels: { [labels.instance]: spec.id, [labels.role]: 'sandbox' } },
      // A changed template applies from the next start on.
      updateStrategy: { type: 'OnDelete' },
      template: {
        metadata: { labels: own },
        spec: {
          ...confinedPod(uid),
          ...placement(setup),
          ...namesOf(relay),
          hostname: 'agent',
          // The first process of the pod adopts orphaned processes, and reaps them. With a separate room each container
          // has its own processes, and `init.sh` does so.
          shareProcessNamespace: !spec.room,
          terminationGracePeriodSeconds: graceSeconds,
          containers: [
            agentContainer(spec, image, paths, setup),
            ...(spec.room ? [roomContainer(image, spec.resources, spec.room)] : []),
          ],
          volumes: volumesOf(objectName(spec.id), { withRoom: spec.room !== undefined }),
        },
      },
    },
  }
  const digest = createHash('sha256').update(JSON.stringify(wanted)).digest('hex')
  Object.assign(wanted.metadata?.annotations ?? {}, { [annotations.spec]: digest })
  Object.assign(wanted.metadata?.labels ?? {}, { [labels.organization]: spec.organizationId })
  return wanted
}

/** The user of a sandbox, to which the files of its volume belong. */
export const uidOf = (id: string, set: V1StatefulSet | null): number =>
  set?.spec?.template.spec?.securityContext?.runAsUser ?? agentUid(id)

/** The folder of the release in images. */
export const releaseFolderIn = (folder: (base: string) => string): string => folder(releasesBase)

/** The size of the volume of a sandbox without a disk limit: a volume must have one. */
const unlimitedVolumeMb = 10_240

/** The volume of a sandbox. */
export function volumeClaim({ id, resources }: SandboxSpec, setup: KubernetesSetup): V1PersistentVolumeClaim {
  return {
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: objectName(id), labels: ownership(setup.installation, id, 'sandbox') },
    spec: {
      accessModes: ['ReadWriteOnce'],
      resources: { requests: { storage: `${resources.diskMb > 0 ? resources.diskMb : unlimitedVolumeMb}Mi` } },
      ...(setup.storageClass !== null && { storageClassName: setup.storageClass }),
    },
  }
}

/**
 * The address of a sandbox in the cluster, which stays while its pods change. Chowder checks gateways before they are
 * ready.
 */
export function service(id: string, installation: string): V1Service {
  return {
    apiVersion: 'v1',
    kind: 'Service',
    metadata: { name: objectName(id), labels: ownership(installation, id, 'sandbox') },
    spec: {
      selector: { [labels.instance]: id, [labels.role]: 'sandbox' },
      publishNotReadyAddresses: true,
      ports: [{ name: 'gateway', port: forwarderPort, protocol: 'TCP', targetPort: forwarderPort as never }],
    },
  }
}

/**
 * The permitted connections of a sandbox's pods: from the control plane, and to the relay, where the egress proxy is
 * too. A Chowder outside of the cluster connects through the API, past the policy.
 */
export function networkPolicy(id: string, setup: KubernetesSetup, relay: RelayPlace): V1NetworkPolicy {
  const { controlNamespace } = setup
  const chowder = {
    namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': controlNamespace ?? '' } },
    podSelector: { matchLabels: { 'app.kubernetes.io/name': 'chowder' } },
  }
  const outside = { ipBlock: { cidr: `${relay.address}/${relay.address.includes(':') ? 128 : 32}` } }
  const port = (number: number) => [{ protocol: 'TCP', port: number as never }]
  return {
    apiVersion: 'networking.k8s.io/v1',
    kind: 'NetworkPolicy',
    metadata: { name: objectName(id), labels: ownership(setup.installation, id, 'sandbox') },
    spec: {
      podSelector: { matchLabels: { [labels.instance]: id } },
      policyTypes: ['Ingress', 'Egress'],
      ingress: controlNamespace === null ? [] : [{ from: [chowder], ports: port(forwarderPort) } as never],
      egress: [{ to: [controlNamespace === null ? outside : chowder], ports: port(relay.port) }],
    },
  }
}

/** A pod on the volume of a sandbox that does not run, for the files program. It ends by itself. */
export function filesPod(id: string, image: string, uid: number, setup: KubernetesSetup): V1Pod {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: filesPodName(id), labels: ownership(setup.installation, id, 'files') },
    spec: {
      ...confinedPod(uid),
      ...placement(setup),
      ...namesOf({ host: '', address: '' }),
      hostname: 'files',
      shareProcessNamespace: true,
      restartPolicy: 'Never',
      activeDeadlineSeconds: filesSeconds,
      terminationGracePeriodSeconds: 1,
      containers: [filesContainer(image)],
      volumes: volumesOf(objectName(id), { withRoom: false }),
    },
  }
}
