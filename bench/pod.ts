import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { KubernetesObject, V1PersistentVolumeClaim, V1Pod, V1StatefulSet } from '@kubernetes/client-node'
import { CoreV1Api, KubeConfig, KubernetesObjectApi } from '@kubernetes/client-node'
import { configPath, gatewayFolders, secretsPath } from '#openclaw/launch.ts'
import { objectName } from '#sandbox/kubernetes/objects.ts'
import { until } from './agents.ts'

const run = promisify(execFile)
const removalTimeoutMs = 2 * 60_000
const madeBy = { 'app.kubernetes.io/managed-by': 'chowder-bench' }
const home = '/agent/home'

/** A gateway of Chowder that has ended waits when Kubernetes starts it again. */
const again = 'rm -f /run/chowder/started; exec "$@"'

/** Everything it takes to start an instance's pod again, under another name. */
export interface Recipe {
  set: V1StatefulSet
  claim: V1PersistentVolumeClaim
  config: string
  secrets: string
}

/** The objects of a pod that starts the same gateway with the same configuration, on a new volume. */
function objectsOf({ set, claim, config, secrets }: Recipe, name: string): KubernetesObject[] {
  const metadata = { name, labels: madeBy }
  const template = set.spec?.template.spec
  const [agent] = template?.containers ?? []
  if (!template || !agent) throw new Error('the StatefulSet has no container')
  const { command: _command, ports: _ports, readinessProbe, ...confined } = agent
  const given = { name: 'given', mountPath: '/given', readOnly: true }
  const copyFiles = `cat /given/config >${home}/${configPath} && cat /given/secrets >${home}/${secretsPath}`
  const folders = gatewayFolders.map((folder) => `${home}/${folder}`).join(' ')
  const pod: V1Pod = {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata,
    spec: {
      ...template,
      initContainers: [
        {
          ...confined,
          name: 'files',
          command: ['/bin/sh', '-c', `umask 077 && mkdir -p ${folders} && ${copyFiles}`],
          volumeMounts: [...(agent.volumeMounts ?? []), given],
        },
      ],
      containers: [
        {
          ...agent,
          command: ['/bin/sh', '-c', again, 'sh', ...(agent.command ?? [])],
          readinessProbe: {
            httpGet: { path: '/startupz', port: readinessProbe?.httpGet?.port ?? 0 },
            periodSeconds: 1,
          },
        },
      ],
      volumes: [
        ...(template.volumes ?? []).map((volume) =>
          volume.persistentVolumeClaim ? { ...volume, persistentVolumeClaim: { claimName: name } } : volume,
        ),
        { name: given.name, secret: { secretName: name, defaultMode: 0o444 } },
      ],
    },
  }
  const { accessModes, resources, storageClassName } = claim.spec ?? {}
  const spec = {
    ...(accessModes && { accessModes }),
    ...(resources && { resources }),
    ...(storageClassName && { storageClassName }),
  }
  const volume = { apiVersion: 'v1', kind: 'PersistentVolumeClaim', metadata, spec }
  return [
    { apiVersion: 'v1', kind: 'Secret', metadata, stringData: { config, secrets } } as KubernetesObject,
    volume,
    pod,
  ]
}

/** Pods by hand in a namespace, as the administrator of the file of credentials. */
export function createPods(kubeconfig: string, namespace: string) {
  const config = new KubeConfig()
  config.loadFromFile(kubeconfig)
  const objects = KubernetesObjectApi.makeApiClient(config)
  const core = config.makeApiClient(CoreV1Api)
  const made = new Map<string, KubernetesObject[]>()
  const setOf = (id: string) => ({
    apiVersion: 'apps/v1',
    kind: 'StatefulSet',
    metadata: { name: objectName(id), namespace },
  })
  const unlessMissing = (error: { code?: number }) => {
    if (error.code !== 404) throw error
    return null
  }

  async function remove(name: string): Promise<void> {
    for (const object of made.get(name) ?? [])
      await objects.delete(object, undefined, undefined, 1).catch(unlessMissing)
    const isGone = async () => (await core.readNamespacedPod({ name, namespace }).catch(unlessMissing)) === null
    await until('removed', removalTimeoutMs, isGone)
    made.delete(name)
  }

  return {
    /** Reads the recipe off a sandbox that Chowder has made. */
    async recipeOf(id: string): Promise<Recipe> {
      const set = (await objects.read(setOf(id))) as V1StatefulSet
      const claim = await core.readNamespacedPersistentVolumeClaim({ name: objectName(id), namespace })
      const read = async (path: string) => {
        const cat = ['exec', '-n', namespace, `${objectName(id)}-0`, '--', 'cat', join(home, path)]
        return (await run('kubectl', ['--kubeconfig', kubeconfig, ...cat])).stdout
      }
      return { set, claim, config: await read(configPath), secrets: await read(secretsPath) }
    },

    /** Whether there is anything of a sandbox of Chowder. */
    isThere: async (id: string) =>
      (await core.readNamespacedPersistentVolumeClaim({ name: objectName(id), namespace }).catch(unlessMissing)) !==
      null,

    /** Resolves once the gateway of the pod is ready. Kubernetes starts one that ends before again: `ended` counts it. */
    async start(recipe: Recipe, name: string, timeoutMs: number, ended: () => void): Promise<void> {
      const wanted = objectsOf(recipe, name).map((object) => ({
        ...object,
        metadata: { ...object.metadata, namespace },
      }))
      made.set(name, wanted)
      for (const object of wanted) await objects.create(object as Parameters<typeof objects.create>[0])
      let restarts = 0
      await until(`${name} ready`, timeoutMs, async () => {
        const [status] = (await core.readNamespacedPod({ name, namespace })).status?.containerStatuses ?? []
        for (; restarts < (status?.restartCount ?? 0); restarts += 1) ended()
        return status?.ready === true
      })
    },

    remove,

    async removeAll(): Promise<void> {
      for (const name of made.keys()) await remove(name)
    },
  }
}
