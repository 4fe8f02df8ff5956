import type Docker from 'dockerode'
import { type ExecResult, noUsage, type Usage } from '#sandbox/driver.ts'
import type { DockerClient } from './docker-client.ts'

const nanosecondsPerSecond = 1e9
/** One sample: dockerd would wait a second for another one. */
const statsOptions = { stream: false, 'one-shot': true } as const

/** Null for a container that does not exist. */
export const statsOf = (client: DockerClient, id: string, signal: AbortSignal): Promise<Docker.ContainerStats | null> =>
  client.callUnless([404, 409], signal, (docker, abortSignal) => {
    const options = { ...statsOptions, abortSignal } // missing in the types
    return docker.getContainer(id).stats(options)
  })

/** The memory that `docker stats` shows: without the files that the kernel only caches. */
export function memoryIn(stats: Docker.ContainerStats | null): number | null {
  const memory = stats?.memory_stats
  if (memory?.usage === undefined) return null
  // The names are those of cgroup v2 and v1.
  return memory.usage - (memory.stats?.inactive_file ?? memory.stats?.total_inactive_file ?? 0)
}

/**
 * Measures a running container. Everything is unknown for a stopped one: its volume is measured only from inside.
 * `runDu` runs the program `du` on the sandbox's own folder, in the container.
 */
export async function measureContainer(
  client: DockerClient,
  container: Docker.ContainerInspectInfo,
  runDu: () => Promise<ExecResult | null>,
  signal: AbortSignal,
): Promise<Usage> {
  if (!container.State.Running) return noUsage
  const [stats, du] = await Promise.all([
    statsOf(client, container.Id, signal),
    // A container that is full or about to end runs no other program.
    runDu().catch(() => {
      signal.throwIfAborted()
      return null
    }),
  ])
  if (!stats) return noUsage
  const { cpu_stats: cpu, pids_stats: pids } = stats
  return {
    since: new Date(container.State.StartedAt),
    memoryBytes: memoryIn(stats),
    memoryLimitBytes: container.HostConfig.Memory || null,
    cpuSeconds: cpu.cpu_usage.total_usage / nanosecondsPerSecond,
    processes: pids?.current ?? null,
    diskBytes: diskIn(du),
  }
}

/** The number comes from the agent: it could run another program as `du`. */
function diskIn(du: ExecResult | null): number | null {
  const bytes = /^(\d{1,15})\t/.exec(du?.stdout ?? '')?.[1]
  return bytes === undefined ? null : Number(bytes)
}
