import { existsSync } from 'node:fs'
import { access, constants } from 'node:fs/promises'
import { join } from 'node:path'
import { gatewayAdmission, releaseImage } from '#openclaw/release-image.ts'
import { StartupError } from '#platform/startup-error.ts'
import { agentUid } from '#sandbox/docker/profile.ts'
import type { KubernetesDriverOptions } from '#sandbox/kubernetes/settings.ts'
import type { Config } from '#settings/config.ts'

/** Where Kubernetes puts the credentials of a pod. */
const tokenFile = '/var/run/secrets/kubernetes.io/serviceaccount/token'

/** The credentials of the cluster. In the cluster a relay, which asks it for nothing, needs none. Throws StartupError. */
async function loadKubeConfig({ KUBECONFIG, KUBERNETES_CONTEXT, CHOWDER_ROLE }: Config) {
  const { KubeConfig } = await import('@kubernetes/client-node')
  const config = new KubeConfig()
  if (KUBECONFIG === undefined) {
    if (CHOWDER_ROLE !== 'relay' && !existsSync(tokenFile))
      throw new StartupError(
        'SANDBOX_DRIVER is kubernetes, and Chowder does not run in a cluster, or its pod has no service account. Set KUBECONFIG to the file that says how to reach the cluster.',
      )
    config.loadFromCluster()
    return config
  }
  try {
    await access(KUBECONFIG, constants.R_OK)
    config.loadFromFile(KUBECONFIG)
  } catch (cause) {
    throw new StartupError('KUBECONFIG must be a file as of kubectl that Chowder can read. Correct it.', { cause })
  }
  if (KUBERNETES_CONTEXT !== undefined) config.setCurrentContext(KUBERNETES_CONTEXT)
  if (!config.getCurrentCluster() || !config.getCurrentUser())
    throw new StartupError(
      `KUBECONFIG has no context ${KUBERNETES_CONTEXT ?? config.getCurrentContext()} with a cluster and a user. Correct it, or set KUBERNETES_CONTEXT.`,
    )
  return config
}

/** The settings of the Kubernetes driver without the installation. Throws StartupError for what does not fit. */
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
    config: await loadKubeConfig(config),
    namespace: config.KUBERNETES_NAMESPACE,
    controlNamespace: isInside ? config.KUBERNETES_CONTROL_NAMESPACE : null,
    socketFolder: isInside ? null : join(dataDir, 'kubernetes'),
    relayUrl: new URL(RELAY_URL),
    repository: KUBERNETES_IMAGE,
    pullSecret: config.KUBERNETES_PULL_SECRET ?? null,
    storageClass: config.KUBERNETES_STORAGE_CLASS ?? null,
    volumeMb: config.KUBERNETES_VOLUME_MB,
    requestPercent: config.KUBERNETES_REQUEST_PERCENT,
    runtimeClass: config.KUBERNETES_RUNTIME_CLASS ?? null,
    extraCaFile: config.DOCKER_EXTRA_CA_FILE ?? null,
    nodeImage: config.DOCKER_NODE_IMAGE,
    releaseSource: (release) => releaseImage(release, agentUid),
    admission: gatewayAdmission,
  }
}
