import { lookup } from 'node:dns/promises'
import type { CoreV1Event, V1PersistentVolumeClaim, V1Pod, V1StatefulSet } from '@kubernetes/client-node'
import pMap from 'p-map'
import { poll } from '#platform/poll.ts'
import { lookAtProcesses } from '#sandbox/docker/activity.ts'
import { type FilesPool, filesBy, filesPool } from '#sandbox/docker/files.ts'
import { imageBuild } from '#sandbox/docker/image.ts'
import { forwarderPort } from '#sandbox/docker/profile.ts'
import {
  type KeptLimits,
  type LogPage,
  noUsage,
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
import { activityIn, type Look, readLook } from './look.ts'
import {
  annotations,
  filesPodName,
  labels,
  networkPolicy,
  objectName,
  pathsOf,
  podName,
  podPrograms,
  type RelayPlace,
  releaseFolderIn,
  selectorOf,
  service,
  statefulSet,
  volumeClaim,
} from './objects.ts'
import { type Problem, problemOf } from './problems.ts'
import type { KubernetesDriverOptions } from './settings.ts'
import { exitOf, hasEnded, isOver, isRunning, startOf } from './states.ts'

/** Less than the step of a start has, so that the reason is known before it. */
const startTimeoutMs = 50_000
/** After that a start does not wait for what only someone can mend. */
const patienceMs = 15_000
const lookMs = 3000
/** The time that Kubernetes needs besides the grace time: old kubelets look again after half a minute. */
const stopMarginMs = 35_000
const removalTimeoutMs = 40_000
/** Kubelets that have not forgotten a pod by then take half a minute. */
const forgetMs = 2000
/** For a pod whose programs have ended, or are not missed. */
const gone = { graceSeconds: 1, until: 'gone' } as const
const retryMs = 300
const lookTimeoutMs = 10_000
/** Pods that are looked into at the same time. */
const looksAtOnce = 8
const megabyte = 1024 * 1024
const portOf: Record<string, number> = { 'http:': 80, 'https:': 443 }

const unlimited: KeptLimits = { memoryMb: null, cpus: null, pids: null }

/** The resources of a pod's agent, which Kubernetes keeps for its whole life. */
function limitsOf(pod: V1Pod): KeptLimits {
  const { memory = '', cpu = '' } = pod.spec?.containers[0]?.resources?.limits ?? {}
  const cpus = cpu.endsWith('m') ? Number(cpu.slice(0, -1)) / 1000 : Number(cpu)
  return { memoryMb: memoryIn(memory) / megabyte || null, cpus: cpus || null, pids: null }
}

const units: Record<string, number> = { Ki: 1024, Mi: megabyte, Gi: 1024 * megabyte }

/** Kubernetes writes 1024Mi as 1Gi. */
function memoryIn(text: string): number {
  const [, amount = '0', unit = ''] = /^(\d+)([A-Za-z]*)$/.exec(text) ?? []
  return Number(amount) * (unit === '' ? 1 : (units[unit] ?? 0))
}

/**
 * Creates the driver of an installation's sandboxes in a namespace of a Kubernetes cluster: a StatefulSet, a volume, a
 * Service and a NetworkPolicy for each instance, named by its id, which live on when this process ends. Calls nothing of
 * the cluster yet.
 */
export function createKubernetesDriver(options: KubernetesDriverOptions): SandboxDriver {
  const { installation, relayUrl } = options
  const client = createKubernetesClient(options.config, options.namespace, options.log)
  const forwards = options.socketFolder === null ? null : createForwards(client, options.socketFolder)
  const pools = new Map<string, FilesPool>()
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

  /** Pods have no name server, so that they are given the address of the relay's name. */
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
    const wanted = statefulSet(spec, image, folder, options, relay)
    const [old, pod] = await Promise.all([findSet(spec.id, signal), findPod(spec.id, signal)])
    const isSame = old?.metadata?.annotations?.[annotations.spec] === wanted.metadata?.annotations?.[annotations.spec]
    if (old && (isSame || (pod && isRunning(pod)))) return
    await client.create('core/persistentvolumeclaims', volumeClaim(spec, options), signal)
    await client.apply('net/networkpolicies', networkPolicy(spec.id, options, relay), signal)
    await client.apply('core/services', service(spec.id, installation), signal)
    // Last: once it is there, so is all else.
    await client.apply('apps/statefulsets', wanted, signal)
  }

  const eventsOf = async (names: readonly string[], signal: AbortSignal): Promise<CoreV1Event[]> => {
    const found: CoreV1Event[] = []
    for (const name of names) {
      const query = { fieldSelector: `involvedObject.name=${name}` }
      for await (const event of client.list<CoreV1Event>('core/events', query, signal)) found.push(event)
    }
    const timeOf = ({ lastTimestamp, eventTime, metadata }: CoreV1Event) =>
      String(lastTimestamp ?? eventTime ?? metadata.creationTimestamp ?? '')
    return found.sort((a, b) => timeOf(a).localeCompare(timeOf(b)))
  }

  const findProblem = async (pod: V1Pod | null, name: string, signal: AbortSignal): Promise<Problem | null> =>
    problemOf(pod, await eventsOf(pod ? [name] : [name, name.replace(/-0$/, '')], signal))

  /** Waits until the pod of a sandbox runs. Throws SandboxProblemError with the reason when it does not. */
  async function waitForPod(id: string, signal: AbortSignal): Promise<void> {
    const over = new AbortController()
    const limited = AbortSignal.any([signal, over.signal])
    const startedAt = performance.now()
    let pod: V1Pod | null = null
    let problem: Problem | null = null
    const watching = (async () => {
      for await (const now of client.follow<V1Pod>('core/pods', podName(id), limited)) {
        pod = now
        if (pod && isRunning(pod)) return true
        if (pod && hasEnded(pod) && !pod.metadata?.deletionTimestamp) return true // observe tells how
      }
      return false
    })()
    const looking = poll(
      async () => {
        problem = await findProblem(pod, podName(id), limited)
        const tooLong = performance.now() - startedAt > patienceMs
        return problem?.isLasting && tooLong
      },
      { pauseMs: lookMs, timeoutMs: startTimeoutMs, signal: limited },
    ).then(() => false)
    try {
      if (await Promise.race([watching, looking])) return
    } finally {
      over.abort(new Error('the wait is over'))
      await Promise.allSettled([watching, looking])
      signal.throwIfAborted()
    }
    const found = problem as Problem | null
    throw new SandboxProblemError(
      found?.text ??
        `The agent was not started in ${startTimeoutMs / 1000} s: Kubernetes says nothing more about it. Its node may be ` +
          'loading the image.',
    )
  }

  /**
   * Removes a pod, if there is one, and waits until its programs have ended, or until it does not exist. Kubelets of
   * old versions forget a pod half a minute after its end, and until then there is no other one of its name.
   */
  async function removePod(
    path: string,
    { graceSeconds, until }: { graceSeconds: number; until: 'ended' | 'gone' },
    signal: AbortSignal,
  ): Promise<void> {
    const pod = await client.find<V1Pod>(path, signal)
    if (!pod) return
    const uid = pod.metadata?.uid
    await client.remove(path, { graceSeconds, uid }, signal)
    let endedAt: number | null = null
    async function isDone(): Promise<boolean> {
      const now = await client.find<V1Pod>(path, signal)
      if (!now || now.metadata?.uid !== uid) return true
      if (!isOver(now)) return false
      if (until === 'ended') return true
      endedAt ??= performance.now()
      if (performance.now() - endedAt > forgetMs) await client.remove(path, { graceSeconds: 0, uid }, signal)
      return false
    }
    const timeoutMs = graceSeconds * 1000 + stopMarginMs
    if (await poll(isDone, { pauseMs: retryMs, timeoutMs, signal })) return
    throw new SandboxProblemError(
      'The pod of the agent is not removed: its node does not answer. Bring the node back, or remove it from the ' +
        'cluster: kubectl delete node.',
    )
  }

  async function start(id: string, signal: AbortSignal): Promise<void> {
    const set = await existing(id, signal)
    const pod = await findPod(id, signal)
    if (pod && isRunning(pod)) return
    if (pod && (hasEnded(pod) || pod.metadata?.deletionTimestamp)) await removePod(podPath(id), gone, signal)
    pools.get(id)?.clear()
    // The volume may not be attached to two nodes.
    await removePod(`core/pods/${filesPodName(id)}`, gone, signal)
    if (set.spec?.replicas !== 1 && !(await client.merge(setPath(id), { spec: { replicas: 1 } }, signal)))
      throw new SandboxAbsentError(`there is no sandbox ${id}`)
    await waitForPod(id, signal)
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    forwards?.close(id)
    if (!(await client.merge(setPath(id), { spec: { replicas: 0 } }, signal))) return
    // At least a second: without a grace time the API would forget a pod that still runs.
    const graceSeconds = Math.max(1, Math.ceil(graceMs / 1000))
    await removePod(podPath(id), { graceSeconds, until: 'ended' }, signal)
    // Their programs have ended with the pod, which this process may not know yet.
    pools.get(id)?.clear()
  }

  async function destroy(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    forwards?.close(id)
    pools.get(id)?.clear()
    const name = objectName(id)
    const claim = `core/persistentvolumeclaims/${name}`
    async function isRemoved(): Promise<boolean> {
      await client.remove(setPath(id), {}, signal)
      const pods = [podPath(id), `core/pods/${filesPodName(id)}`]
      await Promise.all(pods.map((path) => removePod(path, gone, signal)))
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
    // A volume without a StatefulSet belongs to a sandbox that is half-made or half-removed.
    for (const path of ['apps/statefulsets', 'core/persistentvolumeclaims']) {
      for await (const { metadata } of client.list<V1StatefulSet | V1PersistentVolumeClaim>(path, query, signal)) {
        const id = metadata?.labels?.[labels.instance] ?? ''
        if (seen.has(id)) continue
        seen.add(id)
        yield { id, state: running.has(id) ? ('running' as const) : ('stopped' as const) }
      }
    }
  }

  /** null for a sandbox whose pod does not run, and for one in which no program can be run now. */
  async function look(id: string, signal: AbortSignal): Promise<{ pod: V1Pod; seen: Look | null } | null> {
    const pod = await findPod(id, signal)
    if (!pod || !isRunning(pod)) return null
    const command = [`${podPrograms}/look.sh`]
    const seen = await execIn(client, podName(id), '/', command, { timeoutMs: lookTimeoutMs }, signal).catch(() => {
      signal.throwIfAborted()
      return null
    })
    return { pod, seen: seen && readLook(seen.stdout) }
  }

  function poolOf(id: string): FilesPool {
    let pool = pools.get(id)
    if (!pool) {
      const find = async (wanted: string, signal: AbortSignal) => {
        const { spec } = await existing(wanted, signal)
        return { image: spec?.template.spec?.containers[0]?.image ?? '', isWanted: spec?.replicas === 1 }
      }
      pool = filesPool(
        (signal) => openFilesSession(id, { client, setup: options, find, problem: findProblem }, signal),
        () => pools.delete(id),
      )
      pools.set(id, pool)
    }
    return pool
  }

  return {
    name: 'kubernetes',
    isolation:
      'Each agent is a pod of the restricted profile, without a token of the cluster; a NetworkPolicy, if the cluster enforces it, keeps it from all but the relay.',
    outage: client.outage,
    // The relay is in a pod of its own, or RELAY_URL leads to it.
    hostAddress: async (signal) => {
      signal.throwIfAborted()
      return '0.0.0.0'
    },
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
    async activity(id, signal) {
      const pod = await findPod(id, signal)
      if (!pod || !isRunning(pod)) return null
      const options = { timeoutMs: lookTimeoutMs }
      return activityIn((await execIn(client, podName(id), '/', lookAtProcesses, options, signal)).stdout)
    },
    async exec(id, argv, execOptions, signal) {
      const { home } = pathsOf(await existing(id, signal))
      const pod = await findPod(id, signal)
      if (!pod || !isRunning(pod)) throw doesNotRun()
      return execIn(client, podName(id), home, argv, execOptions, signal)
    },
    async readLog(id, { lines, after }, signal) {
      if (!(await findSet(id, signal))) return { lines: [], rest: null, position: '', hasGap: false }
      const pool = poolOf(id)
      const session = await pool.take(signal)
      const onAbort = () => session.end()
      signal.addEventListener('abort', onAbort, { once: true })
      try {
        const answer = await session.ask({ call: 'log', lines, after })
        return ('result' in answer ? answer.result : null) as LogPage
      } catch (error) {
        session.end()
        signal.throwIfAborted()
        throw error
      } finally {
        signal.removeEventListener('abort', onAbort)
        pool.give(session)
      }
    },
    async limit(id, _resources, signal) {
      const pod = await findPod(id, signal)
      return pod && isRunning(pod) ? limitsOf(pod) : unlimited
    },
    async diskUse(ids, signal) {
      signal.throwIfAborted()
      const measure = async (id: string) => [id, (await look(id, signal))?.seen?.diskBytes ?? null] as const
      const found = await pMap(ids, measure, { concurrency: looksAtOnce })
      return new Map(found.filter((pair): pair is [string, number] => pair[1] !== null))
    },
    async currentUse(id, signal) {
      const looked = await look(id, signal)
      return { memoryBytes: looked?.seen?.memoryBytes ?? null, pids: looked?.seen?.processes ?? null }
    },
    async measure(id, signal) {
      const looked = await look(id, signal)
      if (!looked) return noUsage
      const { pod, seen } = looked
      const { memoryMb } = limitsOf(pod)
      return {
        since: startOf(pod),
        memoryBytes: seen?.memoryBytes ?? null,
        memoryLimitBytes: memoryMb === null ? null : memoryMb * megabyte,
        cpuSeconds: seen?.cpuSeconds ?? null,
        processes: seen?.processes ?? null,
        diskBytes: seen?.diskBytes ?? null,
      }
    },
    files: (id) => filesBy(poolOf(id)),
  }
}
