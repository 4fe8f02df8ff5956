import type { V1Pod } from '@kubernetes/client-node'
import pMap from 'p-map'
import { activityIn as activityInContainer, processProbe } from '#sandbox/container/activity.ts'
import { podPrograms, roomPrograms } from '#sandbox/container/layout.ts'
import { type KeptLimits, noKeptLimits, noUsage, type SandboxDriver } from '#sandbox/driver.ts'
import type { KubernetesClient } from './client.ts'
import { containerNames } from './containers.ts'
import { execIn } from './exec.ts'
import { activityIn, type Probe, readProbe } from './look.ts'
import { podName } from './objects.ts'
import { isRunning, startOf } from './states.ts'

const probeTimeoutMs = 10_000
/** Pods probed at the same time. */
const maxConcurrent = 8
const megabyte = 1024 * 1024
const probeProgram = `${podPrograms}/look.sh`

/** The room prints it for a program beside the gateway: a program that is started there from outside has a network. */
const probeInRoom = ['env', 'HOME=/agent/home/home', `${roomPrograms}/room-ssh.py`, 'room', probeProgram]
const units: Record<string, number> = { Ki: 1024, Mi: megabyte, Gi: 1024 * megabyte }

/** Kubernetes writes 1024Mi as 1Gi. */
function memoryIn(text: string): number {
  const [, amount = '0', unit = ''] = /^(\d+)([A-Za-z]*)$/.exec(text) ?? []
  return Number(amount) * (unit === '' ? 1 : (units[unit] ?? 0))
}

/** The resources of a pod's agent, which Kubernetes keeps for its whole life. */
function limitsOf(pod: V1Pod): KeptLimits {
  const { memory = '', cpu = '' } = pod.spec?.containers[0]?.resources?.limits ?? {}
  const cpus = cpu.endsWith('m') ? Number(cpu.slice(0, -1)) / 1000 : Number(cpu)
  return { memoryMb: memoryIn(memory) / megabyte || null, cpus: cpus || null, pids: null, diskMb: null }
}

const hasRoom = (pod: V1Pod) => pod.spec?.containers.some(({ name }) => name === containerNames.room) === true

/** The activity and use of pods, measured by programs that run in them; unknown for a pod that does not run. */
export function createUse(
  client: KubernetesClient,
): Pick<SandboxDriver, 'activity' | 'limit' | 'diskUse' | 'memoryUse' | 'measure'> {
  async function findRunning(id: string, signal: AbortSignal): Promise<V1Pod | null> {
    const pod = await client.find<V1Pod>(`core/pods/${podName(id)}`, signal)
    return pod && isRunning(pod) ? pod : null
  }

  const run = async (id: string, command: readonly string[], signal: AbortSignal): Promise<string> =>
    (await execIn(client, podName(id), '/', command, { timeoutMs: probeTimeoutMs }, signal)).stdout

  /** null when no program can run in the pod now. */
  const tryProbe = (id: string, command: readonly string[], signal: AbortSignal): Promise<Probe | null> =>
    run(id, command, signal).then(readProbe, () => {
      signal.throwIfAborted()
      return null
    })

  /** null for a sandbox whose pod does not run. */
  async function probe(id: string, signal: AbortSignal): Promise<{ pod: V1Pod; seen: Probe | null } | null> {
    const pod = await findRunning(id, signal)
    return pod && { pod, seen: await tryProbe(id, [probeProgram], signal) }
  }

  return {
    async activity(id, signal) {
      const pod = await findRunning(id, signal)
      if (!pod) return null
      const read = hasRoom(pod) ? activityInContainer : activityIn
      return read(await run(id, processProbe, signal))
    },
    async limit(id, _resources, signal) {
      const pod = await findRunning(id, signal)
      return pod ? limitsOf(pod) : noKeptLimits
    },
    async diskUse(ids, signal) {
      signal.throwIfAborted()
      const measure = async (id: string) => [id, (await probe(id, signal))?.seen?.diskBytes ?? null] as const
      const found = await pMap(ids, measure, { concurrency: maxConcurrent })
      return new Map(found.filter((pair): pair is [string, number] => pair[1] !== null))
    },
    async memoryUse(id, signal) {
      const probed = await probe(id, signal)
      if (!probed?.seen) return null
      const room = hasRoom(probed.pod) ? await tryProbe(id, probeInRoom, signal) : null
      // Each room has the limit for itself.
      return Math.max(probed.seen.memoryBytes ?? 0, room?.memoryBytes ?? 0)
    },
    async measure(id, signal) {
      const probed = await probe(id, signal)
      if (!probed) return noUsage
      const { pod, seen } = probed
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
  }
}
