import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { StartupError } from '#errors/startup-error.ts'
import { gatewayAdmission, releaseImage } from '#openclaw/release/release-image.ts'
import { type Cluster, clusterOf, ownCluster, serviceAccount } from '#sandbox/kubernetes/cluster.ts'
import type { KubernetesDriverOptions } from '#sandbox/kubernetes/settings.ts'
import type { Config } from '#settings/config.ts'

/** The cluster. A relay in the cluster makes no requests to it, and needs no credentials. Throws StartupError. */
async function findCluster({ KUBECONFIG, CHOWDER_ROLE }: Config): Promise<Cluster> {
  if (KUBECONFIG === undefined) {
    if (CHOWDER_ROLE !== 'relay' && !existsSync(join(serviceAccount, 'token')))
      throw new StartupError(
        'SANDBOX_DRIVER is kubernetes, and Chowder does not run in a cluster, or its pod has no service account. Set KUBECONFIG to the file that says how to reach the cluster.',
      )
    return ownCluster()
  }
  return clusterOf(KUBECONFIG).catch((cause: Error) => {
    throw new StartupError(
      'KUBECONFIG must be a file as of kubectl that Chowder can read, with a current context that has a cluster and a user, without a proxy and an auth-provider. Correct it.',
      { cause },
    )
  })
}

/** The namespace of this pod; it may be unknown to a relay, which creates no objects. */
const ownNamespace = () => readFile(join(serviceAccount, 'namespace'), 'utf8').catch(() => '')

/** The settings of the Kubernetes driver without the installation. Throws StartupError for unsuitable ones. */
export async function kubernetesSettings(
  config: Config,
  dataDir: string,
): Promise<Omit<KubernetesDriverOptions, 'installation'>> {
  const { KUBERNETES_IMAGE, RELAY_URL } = config
  if (KUBERNETES_IMAGE === undefined)
    throw new StartupError(
      'SANDBOX_DRIVER is kubernetes, and KUBERNETES_IMAGE is not set: set it to the repository of the images of agents, such as registry.example.com/chowder-openclaw.',
    )
  if (RELAY_URL === undefined)
    throw new StartupError(
      'SANDBOX_DRIVER is kubernetes, and RELAY_URL is not set: set it to where the pods of agents reach the relay, such as http://chowder-relay.chowder.svc:8090.',
    )
  const isInside = config.KUBECONFIG === undefined
  return {
    cluster: await findCluster(config),
    namespace: config.KUBERNETES_NAMESPACE,
    controlNamespace: isInside ? await ownNamespace() : null,
    socketFolder: isInside ? null : join(dataDir, 'kubernetes'),
    relayUrl: new URL(RELAY_URL),
    repository: KUBERNETES_IMAGE,
    storageClass: config.KUBERNETES_STORAGE_CLASS ?? null,
    requestPercent: config.KUBERNETES_REQUEST_PERCENT,
    runtimeClass: config.KUBERNETES_RUNTIME_CLASS ?? null,
    extraCaFile: config.DOCKER_EXTRA_CA_FILE ?? null,
    nodeImage: config.DOCKER_NODE_IMAGE,
    releaseSource: releaseImage,
    admission: gatewayAdmission,
  }
}
