import type { Logger } from '#platform/log.ts'
import type { Admission } from '#sandbox/container/image/forwarder.ts'
import type { ReleaseSource } from '#sandbox/container/image.ts'
import type { Cluster } from './cluster.ts'

/** The settings of the objects of sandboxes. */
export interface KubernetesSetup {
  /** The sandboxes of other installations in the same namespace are ignored. */
  installation: string
  /** The namespace of the control plane, for the network policies; null for one outside of the cluster. */
  controlNamespace: string | null
  /** The requests that the forwarder passes to a gateway. */
  admission: Admission
  storageClass: string | null
  /** The part of its limits that an agent requests of its node. */
  requestPercent: number
  runtimeClass: string | null
}

export interface KubernetesDriverOptions extends KubernetesSetup {
  cluster: Cluster
  namespace: string
  /** The folder for the sockets that lead to gateways; null if Chowder reaches the addresses of Services. */
  socketFolder: string | null
  relayUrl: URL
  /** The repository of the images of releases. Their tags depend on the next three. */
  repository: string
  extraCaFile: string | null
  nodeImage: string
  releaseSource(release: string): ReleaseSource
  /** Gets one line when the API becomes unreachable, and one when it answers again. */
  log?: Pick<Logger, 'info' | 'warn'>
}
