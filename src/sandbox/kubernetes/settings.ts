import type { KubeConfig } from '@kubernetes/client-node'
import type { Logger } from '#platform/log.ts'
import type { Admission } from '#sandbox/docker/image/forwarder.ts'
import type { ReleaseSource } from '#sandbox/docker/image.ts'

/** What the objects of sandboxes are made of. */
export interface KubernetesSetup {
  /** The sandboxes of other installations in the same namespace are not seen. */
  installation: string
  /** The namespace of the control plane, which agents reach and are reached by; null for one outside of the cluster. */
  controlNamespace: string | null
  /** The requests that the forwarder lets through to a gateway. */
  admission: Admission
  storageClass: string | null
  /** The size of the volume of an agent whose disk has no limit. */
  volumeMb: number
  /** How much of its limits an agent requests of its node. */
  requestPercent: number
  runtimeClass: string | null
  pullSecret: string | null
}

export interface KubernetesDriverOptions extends KubernetesSetup {
  config: KubeConfig
  namespace: string
  /** The folder for the sockets that lead to gateways; null where Chowder reaches the addresses of Services. */
  socketFolder: string | null
  relayUrl: URL
  /** The repository of the images of releases, and what their tags depend on. */
  repository: string
  extraCaFile: string | null
  nodeImage: string
  releaseSource(release: string): ReleaseSource
  /** Says once when the API cannot be reached, and once when it answers again. */
  log?: Pick<Logger, 'info' | 'warn'>
}
