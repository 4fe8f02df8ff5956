import type { Logger } from '#platform/log.ts'
import type { Admission } from '#sandbox/container/image/forwarder.ts'
import type { ReleaseSource } from '#sandbox/container/image.ts'
import type { Cluster } from './cluster.ts'

/** The settings of the objects of sandboxes. */
export interface KubernetesSetup {
  /** The sandboxes of other installations in the same namespace are not seen. */
  installation: string
  /** The namespace of the control plane, for the rules of the network; null for one outside of the cluster. */
  controlNamespace: string | null
  /** The requests that the forwarder lets through to a gateway. */
  admission: Admission
  storageClass: string | null
  /** How much of its limits an agent requests of its node. */
  requestPercent: number
  runtimeClass: string | null
}

export interface KubernetesDriverOptions extends KubernetesSetup {
  cluster: Cluster
  namespace: string
  /** The folder for the sockets that lead to gateways; null where Chowder reaches the addresses of Services. */
  socketFolder: string | null
  relayUrl: URL
  /** The repository of the images of releases. Their tags depend on the next three. */
  repository: string
  extraCaFile: string | null
  nodeImage: string
  releaseSource(release: string): ReleaseSource
  /** Gets one line when the API cannot be reached, and one when it answers again. */
  log?: Pick<Logger, 'info' | 'warn'>
}
