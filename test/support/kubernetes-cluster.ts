import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createReadStream, existsSync } from 'node:fs'
import { chmod, chown, cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { CoreV1Api, KubeConfig, KubernetesObjectApi, loadAllYaml } from '@kubernetes/client-node'
import { imageBuild, programFiles } from '#sandbox/container/image.ts'
import { agentGid } from '#sandbox/container/layout.ts'
import { type Cluster, clusterOf } from '#sandbox/kubernetes/cluster.ts'
import { serveNames } from './cluster-names.ts'
import { contractBuild, contractRelease } from './docker-host.ts'
import { debianTar } from './dockerd.ts'
import { enforcePolicies } from './network-policies.ts'
import { until } from './until.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
const script = join(import.meta.dirname, 'kubernetes-cluster.sh')
/** A first run builds Kubernetes. */
const startMs = 60 * 60_000
export const namespace = 'agents'
export const repository = 'chowder.test/chowder-openclaw'
/** A cluster notices after 40 s that a kubelet says nothing. */
const nodeMs = 2 * 60_000
/** This machine, in the network of pods. */
export const podGateway = '10.88.77.1'

/** A real cluster of one node, for tests. */
export interface TestCluster {
  /** Where its credentials and its volumes are. */
  folder: string
  /** The credentials of Chowder, which may do what its Role allows. */
  /** With the rights of Chowder. */
  chowder: Cluster
  admin: KubeConfig
  /** The file of the administrator's credentials. */
  kubeconfig: string
  /** Runs kubectl as the administrator, in the namespace of agents. */
  kubectl(...args: string[]): Promise<string>
  /** Kills the kubelet of the node, or lets it start again, and waits until the cluster knows. */
  setKubelet(state: 'killed' | 'running'): Promise<void>
  /** Gives the node images of a dockerd. */
  load(dockerHost: string, images: readonly string[]): Promise<void>
  close(): Promise<void>
}

async function digestOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  await pipeline(createReadStream(path), hash)
  return `sha256:${hash.digest('hex')}`
}

/** Gives the node an image of layers, each a tar. */
async function importImage(
  folder: string,
  name: string,
  layers: readonly string[],
  Entrypoint: string[],
): Promise<void> {
  const images = ['-a', join(folder, 'run/c.sock'), '-n', 'k8s.io', 'images']
  if ((await run('ctr', [...images, 'ls', '-q'])).stdout.split('\n').includes(name)) return
  const parts = await mkdtemp(join(folder, 'image-'))
  const rootfs = { type: 'layers', diff_ids: await Promise.all(layers.map(digestOf)) }
  await writeFile(
    join(parts, 'config.json'),
    JSON.stringify({ architecture: 'amd64', os: 'linux', config: { Entrypoint }, rootfs }),
  )
  const names = layers.map((_, index) => `${index}.tar`)
  for (const [index, layer] of layers.entries()) await cp(layer, join(parts, `${index}.tar`))
  const manifest = [{ Config: 'config.json', RepoTags: [name], Layers: names }]
  await writeFile(join(parts, 'manifest.json'), JSON.stringify(manifest))
  const archive = join(folder, 'image.tar')
  await run('tar', ['-cf', archive, '-C', parts, 'manifest.json', 'config.json', ...names])
  await run('ctr', [...images, 'import', archive])
  await rm(parts, { recursive: true })
  await rm(archive)
}

/** The image of an agent whose gateway is a small program, on the Debian of the tests. */
async function importAgentImage(folder: string): Promise<void> {
  const files = join(folder, 'agent')
  const programs = join(files, 'opt/chowder/programs')
  for (const file of programFiles) await cp(join(root, 'src/sandbox', file), join(programs, file))
  await run(process.execPath, ['--no-warnings', join(programs, 'container/image/strip-types.mjs'), programs])
  await cp(join(import.meta.dirname, 'contract-gateway.mjs'), join(files, 'opt/chowder/support/contract-gateway.mjs'))
  await mkdir(join(files, 'usr/local/bin'), { recursive: true })
  await cp(process.execPath, join(files, 'usr/local/bin/node'))
  await mkdir(join(files, 'agent'))
  const layer = join(folder, 'agent.tar')
  await run('tar', ['-cf', layer, '--owner=0', '--group=0', '--mode=go+rX', '-C', files, '.'])
  const { name } = await imageBuild('v1', contractRelease, contractBuild)
  await importImage(folder, `${repository}:${name.split(':')[1]}`, [await debianTar(), layer], ['/bin/sh'])
  await rm(layer)
  await rm(files, { recursive: true })
}

async function importPause(folder: string): Promise<void> {
  const layer = join(folder, 'pause.tar')
  await run('tar', ['-cf', layer, '-C', '/var/cache/chowder-kubernetes', 'pause'])
  await importImage(folder, 'chowder.test/pause:1', [layer], ['/pause'])
}

/**
 * Gives each claim a folder of this machine, and removes those of claims that are gone: the cluster has no storage of
 * its own. Returns what ends that.
 */
function provideVolumes(admin: KubeConfig, folder: string): () => void {
  const api = admin.makeApiClient(CoreV1Api)
  let isOver = false
  const given = new Set<string>()
  async function provide(): Promise<void> {
    const { items } = await api.listPersistentVolumeClaimForAllNamespaces()
    for (const { metadata, spec, status } of items) {
      const { name = '', uid = '' } = metadata ?? {}
      if (status?.phase !== 'Pending' || given.has(uid)) continue
      given.add(uid)
      const path = join(folder, 'volumes', uid)
      await mkdir(path, { recursive: true })
      // Kubernetes gives folders of the node to no group, as it would other volumes.
      const isOfAgent = metadata?.labels?.['chowder.dev/instance'] !== undefined
      if (isOfAgent) await chown(path, 0, agentGid)
      await chmod(path, isOfAgent ? 0o2770 : 0o777)
      await api.createPersistentVolume({
        body: {
          metadata: { name: uid },
          spec: {
            capacity: spec?.resources?.requests ?? {},
            accessModes: ['ReadWriteOnce'],
            persistentVolumeReclaimPolicy: 'Retain',
            hostPath: { path },
            claimRef: { namespace: metadata?.namespace ?? '', name, uid },
          },
        },
      })
    }
    const volumes = await api.listPersistentVolume()
    for (const { metadata, spec, status } of volumes.items) {
      if (status?.phase !== 'Released') continue
      await api.deletePersistentVolume({ name: metadata?.name ?? '' })
      await rm(spec?.hostPath?.path ?? '', { recursive: true, force: true })
    }
  }
  const loop = async () => {
    while (!isOver) {
      await provide().catch(() => {})
      await new Promise((resolve) => setTimeout(resolve, 300))
    }
  }
  void loop()
  return () => {
    isOver = true
  }
}

function configOf(folder: string, user: string): KubeConfig {
  const config = new KubeConfig()
  config.loadFromFile(join(folder, `${user}.conf`))
  return config
}

async function end(cluster: ChildProcess | null): Promise<void> {
  if (!cluster || cluster.exitCode !== null) return
  const ended = new Promise((resolve) => cluster.once('exit', resolve))
  cluster.kill('SIGTERM')
  await ended
}

/**
 * Starts a cluster of one node, and takes the one that runs in the folder `TEST_KUBERNETES_FOLDER` if that is set. It
 * takes root; the first start builds Kubernetes from a Debian source package, into `/var/cache/chowder-kubernetes`.
 */
export async function startCluster(): Promise<TestCluster> {
  const { TEST_KUBERNETES_FOLDER } = process.env
  const folder = TEST_KUBERNETES_FOLDER ?? (await mkdtemp(join(tmpdir(), 'chowder-cluster-')))
  const cluster = TEST_KUBERNETES_FOLDER
    ? null
    : spawn('/bin/bash', [script, folder], { stdio: ['ignore', 'ignore', 'pipe'] })
  let words = ''
  cluster?.stderr?.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-4000)
  })
  await until(
    'the cluster',
    () => {
      if (cluster && cluster.exitCode !== null) throw new Error(`the cluster ended: ${words}`)
      return existsSync(join(folder, 'ready'))
    },
    startMs,
  )
  const admin = configOf(folder, 'admin')
  await importPause(folder)
  await importAgentImage(folder)
  const kubectl: TestCluster['kubectl'] = async (...args) =>
    (await run('kubectl', ['--kubeconfig', join(folder, 'admin.conf'), ...args])).stdout
  const objects = KubernetesObjectApi.makeApiClient(admin)
  const role = loadAllYaml(await readFile(join(root, 'deploy/kubernetes/base/agents/role.yaml'), 'utf8'))
  const binding = {
    apiVersion: 'rbac.authorization.k8s.io/v1',
    kind: 'RoleBinding',
    metadata: { name: 'chowder', namespace },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'Role', name: 'chowder' },
    subjects: [{ apiGroup: 'rbac.authorization.k8s.io', kind: 'User', name: 'chowder' }],
  }
  const wanted = [{ apiVersion: 'v1', kind: 'Namespace', metadata: { name: namespace } }, ...role, binding]
  for (const object of wanted as Parameters<typeof objects.create>[0][]) {
    if (object.kind !== 'Namespace') object.metadata = { ...object.metadata, namespace }
    await objects.create(object).catch((error: { code?: number }) => {
      if (error.code !== 409) throw error
    })
  }
  const stopProviding = provideVolumes(admin, folder)
  const stopEnforcing = enforcePolicies(admin, podGateway)
  const names = await serveNames(admin, podGateway)
  return {
    folder,
    chowder: await clusterOf(join(folder, 'chowder.conf')),
    admin,
    kubeconfig: join(folder, 'admin.conf'),
    kubectl,
    async setKubelet(state) {
      const held = join(folder, 'kubelet-held')
      const isReady = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'
      if (state === 'killed') {
        await writeFile(held, '')
        await run('pkill', ['-KILL', '-f', '--', `--root-dir=${folder}/kubelet`])
      } else await rm(held)
      const wanted = state === 'killed' ? 'Unknown' : 'True'
      const isKnown = async () => (await kubectl('get', 'node', 'localhost', '-o', isReady)) === wanted
      await until(`a node whose kubelet is ${state}`, isKnown, nodeMs)
    },
    async load(dockerHost, images) {
      const importing = 'docker save "$@" | ctr -a "$SOCKET" -n k8s.io images import -'
      const env = { ...process.env, DOCKER_HOST: dockerHost, SOCKET: join(folder, 'run/c.sock') }
      await run('bash', ['-o', 'pipefail', '-c', importing, 'bash', ...images], { env })
    },
    async close() {
      stopProviding()
      stopEnforcing()
      names.close()
      await end(cluster)
      if (cluster) await rm(folder, { recursive: true, force: true })
    },
  }
}
