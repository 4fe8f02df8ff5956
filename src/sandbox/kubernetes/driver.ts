import { lookup } from 'node:dns/promises'
import type { V1PersistentVolumeClaim, V1Pod, V1StatefulSet } from '@kubernetes/client-node'
import { poll } from '#platform/poll.ts'
import { askProgram, filesBatch, filesBy, limitSessions } from '#sandbox/container/files.ts'
import { imageBuild } from '#sandbox/container/image.ts'
import { forwarderPort } from '#sandbox/container/layout.ts'
import {
  type LogPage,
  type Observation,
  SandboxAbsentError,
  type SandboxDriver,
  SandboxProblemError,
  type SandboxSpec,
  SandboxUnavailableError,
} from '#sandbox/driver.ts'
import { createKubernetesClient } from './client.ts'
import { doesNotRun, execIn } from './exec.ts'
import { openFilesSession } from './files-pod.ts'
import { createForwards } from './forward.ts'
import {
  annotations,
  filesPodName,
  labels,
  networkPolicy,
  objectName,
  pathsOf,
  podName,
  type RelayPlace,
  releaseFolderIn,
  selectorOf,
  service,
  statefulSet,
  uidOf,
  volumeClaim,
} from './objects.ts'
import { removePod, waitForPod } from './pods.ts'
import type { KubernetesDriverOptions } from './settings.ts'
import { exitOf, hasEnded, isRunning } from './states.ts'
import { createUse } from './use.ts'

const removalTimeoutMs = 40_000
/** The grace time of a pod whose programs may be killed. */
const gone = { graceSeconds: 1, until: 'gone' } as const
const retryMs = 300
const portOf: Record<string, number> = { 'http:': 80, 'https:': 443 }

/**
 * Creates the driver of an installation's sandboxes in a namespace of a Kubernetes cluster: a StatefulSet, a volume, a
 * Service and a NetworkPolicy for each instance, named by its id, which outlive this process. Makes no call of the
 * cluster yet.
 */
export function createKubernetesDriver(options: KubernetesDriverOptions): SandboxDriver {
  const { installation, relayUrl } = options
  const client = createKubernetesClient(options.cluster, options.namespace, options.log)
  const forwards = options.socketFolder === null ? null : createForwards(client, options.socketFolder)
  const setPath = (id: string) => `apps/statefulsets/${objectName(id)}`
  const podPath = (id: string) => `core/pods/${podName(id)}`

  const findSet = (id: string, signal: AbortSignal) => client.find<V1StatefulSet>(setPath(id), signal)
  const findPod = (id: string, signal: AbortSignal) => client.find<V1Pod>(podPath(id), signal)

  async function existing(id: string, signal: AbortSignal): Promise<V1StatefulSet> {
    const set = await findSet(id, signal)
    if (!set || set.metadata?.deletionTimestamp) throw new SandboxAbsentError(`there is no sandbox ${id}`)
    return set
  }

  async function imageOf(release: string): Promise<string> {
    const { extraCaFile, nodeImage } = options
    const build = { network: 'default', extraCaFile, nodeImage }
    const { name } = await imageBuild(release, options.releaseSource(release), build)
    return `${options.repository}:${name.slice(name.indexOf(':') + 1)}`
  }

  /** Pods have no name server, so they get the address of the relay's name. */
  async function findRelay(): Promise<RelayPlace> {
    const host = relayUrl.hostname.replace(/^\[|\]$/g, '')
    const port = relayUrl.port === '' ? (portOf[relayUrl.protocol] ?? 0) : Number(relayUrl.port)
    const { address } = await lookup(host).catch((cause) => {
      throw new SandboxProblemError(`The host of RELAY_URL, ${host}, has no address. Correct RELAY_URL.`, { cause })
    })
    return { url: relayUrl.origin, host, address, port }
  }

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const [image, relay] = await Promise.all([imageOf(spec.release), findRelay()])
    const folder = releaseFolderIn(options.releaseSource(spec.release).folder)
    const [old, pod] = await Promise.all([findSet(spec.id, signal), findPod(spec.id, signal)])
    const wanted = statefulSet(spec, image, folder, options, relay, uidOf(spec.id, old))
    const isSame = old?.metadata?.annotations?.[annotations.spec] === wanted.metadata?.annotations?.[annotations.spec]
    if (old && (isSame || (pod && isRunning(pod)))) return
    await client.create('core/persistentvolumeclaims', volumeClaim(spec, options), signal)
    await client.apply('net/networkpolicies', networkPolicy(spec.id, options, relay), signal)
    await client.apply('core/services', service(spec.id, installation), signal)
    // The StatefulSet comes last: if it exists, the other objects exist.
    await client.apply('apps/statefulsets', wanted, signal)
  }

  async function start(id: string, signal: AbortSignal): Promise<void> {
    const set = await existing(id, signal)
    const pod = await findPod(id, signal)
    if (pod && isRunning(pod)) return
    if (pod && (hasEnded(pod) || pod.metadata?.deletionTimestamp)) await removePod(client, podPath(id), gone, signal)
    // The pod for files ends while the agent's pod is scheduled: it must stop writing, and another node gets a volume
    // of one node only after that.
    const filesPath = `core/pods/${filesPodName(id)}`
    await client.remove(filesPath, { graceSeconds: gone.graceSeconds }, signal)
    if (set.spec?.replicas !== 1 && !(await client.merge(setPath(id), { spec: { replicas: 1 } }, signal)))
      throw new SandboxAbsentError(`there is no sandbox ${id}`)
    await Promise.all([removePod(client, filesPath, gone, signal), waitForPod(client, id, signal)])
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    forwards?.close(id)
    if (!(await client.merge(setPath(id), { spec: { replicas: 0 } }, signal))) return
    // At least a second: without a grace time the API would forget a pod that still runs.
    const graceSeconds = Math.max(1, Math.ceil(graceMs / 1000))
    await removePod(client, podPath(id), { graceSeconds, until: 'ended' }, signal)
  }

  async function destroy(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    forwards?.close(id)
    const name = objectName(id)
    const claim = `core/persistentvolumeclaims/${name}`
    async function isRemoved(): Promise<boolean> {
      await client.remove(setPath(id), {}, signal)
      const pods = [podPath(id), `core/pods/${filesPodName(id)}`]
      await Promise.all(pods.map((path) => removePod(client, path, gone, signal)))
      for (const path of [`core/services/${name}`, `net/networkpolicies/${name}`, claim])
        await client.remove(path, {}, signal)
      const left = [claim, podPath(id), setPath(id)].map((path) => client.find(path, signal))
      return (await Promise.all(left)).every((object) => object === null)
    }
    if (!(await poll(isRemoved, { pauseMs: retryMs, timeoutMs: removalTimeoutMs, signal })))
      throw new SandboxUnavailableError(new Error(`the volume of ${name} is still in use`))
  }

  async function observe(id: string, signal: AbortSignal): Promise<Observation> {
    const [set, pod] = await Promise.all([findSet(id, signal), findPod(id, signal)])
    if (!set) return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
    const seen = { sandboxId: `kubernetes-${set.metadata?.uid?.slice(0, 13)}`, paths: pathsOf(set) }
    if (pod && isRunning(pod)) return { ...seen, state: 'running', endpoint: await endpointOf(id) }
    const exit = pod ? exitOf(pod) : undefined
    return { ...seen, state: 'stopped', endpoint: null, ...(exit && { exit }) }
  }

  async function endpointOf(id: string): Promise<Observation['endpoint']> {
    if (forwards) return { kind: 'unix', path: await forwards.open(id) }
    return { kind: 'tcp', host: `${objectName(id)}.${options.namespace}.svc`, port: forwarderPort }
  }

  async function* list(signal: AbortSignal) {
    const query = { labelSelector: selectorOf(installation) }
    const running = new Set<string>()
    for await (const pod of client.list<V1Pod>('core/pods', query, signal))
      if (isRunning(pod)) running.add(pod.metadata?.labels?.[labels.instance] ?? '')
    const seen = new Set<string>()
    // A volume without a StatefulSet belongs to a half-created or half-removed sandbox.
    for (const path of ['apps/statefulsets', 'core/persistentvolumeclaims']) {
      for await (const { metadata } of client.list<V1StatefulSet | V1PersistentVolumeClaim>(path, query, signal)) {
        const id = metadata?.labels?.[labels.instance] ?? ''
        if (seen.has(id)) continue
        seen.add(id)
        yield { id, state: running.has(id) ? ('running' as const) : ('stopped' as const) }
      }
    }
  }

  const findForFiles = async (id: string, signal: AbortSignal) => {
    const set = await existing(id, signal)
    const { spec } = set
    const image = spec?.template.spec?.containers[0]?.image ?? ''
    return { image, uid: uidOf(id, set), isWanted: spec?.replicas === 1 }
  }
  const filesOptions = { client, setup: options, find: findForFiles }
  const sessionsOf = limitSessions((id, signal) => openFilesSession(id, filesOptions, signal))

  return {
    name: 'kubernetes',
    isolation:
      'Each agent is a pod of the restricted profile, without a token of the cluster; a NetworkPolicy, if the cluster enforces it, keeps it from all but the relay.',
    hasTwoRooms: true,
    outage: client.outage,
    // The nodes load the images of the registry.
    prepare: async (_release, _progress, signal) => signal.throwIfAborted(),
    prepareChannel: async (_release, _channel, _progress, signal) => signal.throwIfAborted(),
    create,
    start,
    stop,
    destroy,
    observe,
    list,
    async *ends(signal) {
      const query = { labelSelector: selectorOf(installation) }
      for await (const { type, object } of client.changes<V1Pod>('core/pods', query, signal)) {
        const id = object.metadata?.labels?.[labels.instance]
        if (id !== undefined && (type === 'DELETED' || !isRunning(object))) yield id
      }
    },
    async exec(id, argv, execOptions, signal) {
      const { home } = pathsOf(await existing(id, signal))
      const pod = await findPod(id, signal)
      if (!pod || !isRunning(pod)) throw doesNotRun()
      return execIn(client, podName(id), home, argv, execOptions, signal)
    },
    async readLog(id, { lines, after }, signal) {
      if (!(await findSet(id, signal))) return { lines: [], rest: null, position: '', hasGap: false }
      return (await askProgram(sessionsOf(id), { call: 'log', lines, after }, signal)) as LogPage
    },
    ...createUse(client),
    files: (id) => filesBy(sessionsOf(id)),
    filesBatch: (id, use) => filesBatch(sessionsOf(id), use),
  }
}
