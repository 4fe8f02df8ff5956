import type Docker from 'dockerode'
import type { KeptLimits, Resources } from '#sandbox/driver.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { memoryIn, statsOf } from './measure.ts'
import { limitsOf, sandboxName } from './profile.ts'

/** dockerd reads every folder of every volume. */
export const diskUseDeadlineMs = 60_000
const megabyte = 1024 * 1024

/**
 * Changes the limits of a running container. Returns whether the new memory limit applies, which it does unless more is
 * used; null for a container that does not run.
 */
export async function changeLimits(
  client: DockerClient,
  name: string,
  resources: Resources,
  signal: AbortSignal,
): Promise<{ hasNewMemory: boolean } | null> {
  const { Memory, MemorySwap, ...others } = limitsOf(resources)
  const used = memoryIn(await statsOf(client, name, signal))
  if (used === null) return null
  const hasNewMemory = used <= Memory
  const changed = hasNewMemory ? { Memory, MemorySwap, ...others } : others
  const answer = await client.callUnless([404, 409], signal, (docker, abortSignal) =>
    docker.getContainer(name).update({ ...inBody(changed), abortSignal }),
  )
  return answer && { hasNewMemory }
}

/** The limits of a container after a change. */
export function keptLimits(
  { HostConfig }: Docker.ContainerInspectInfo,
  { hasNewMemory }: { hasNewMemory: boolean },
  { memoryMb, cpus, pids }: Resources,
): KeptLimits {
  const before = (HostConfig.Memory ?? 0) / megabyte
  return { memoryMb: hasNewMemory ? memoryMb : before || null, cpus, pids, diskMb: null }
}

/** Dockerode has the call, but not its filter for volumes: dockerd would measure images as well. */
const askDiskUse = (docker: Docker, abortSignal: AbortSignal): Promise<{ Volumes?: Docker.VolumeInspectInfo[] }> =>
  new Promise((resolve, reject) => {
    const call = {
      path: '/system/df?',
      method: 'GET',
      options: { type: 'volume' },
      statusCodes: { 200: true, 500: 'server error' },
      abortSignal,
    }
    docker.modem.dial(call, (error: unknown, answer: unknown) =>
      error ? reject(error as Error) : resolve(answer as { Volumes?: Docker.VolumeInspectInfo[] }),
    )
  })

/** The sizes of the volumes of sandboxes. dockerd measures those of all containers at once. */
export async function diskUseOf(
  client: DockerClient,
  ids: readonly string[],
  signal: AbortSignal,
): Promise<Map<string, number>> {
  const { Volumes } = await client.call(signal, askDiskUse, { deadlineMs: diskUseDeadlineMs })
  const sizes = new Map((Volumes ?? []).map(({ Name, UsageData }) => [Name, UsageData?.Size ?? -1]))
  const known = ids.map((id) => [id, sizes.get(sandboxName(id)) ?? -1] as const)
  return new Map(known.filter(([, size]) => size >= 0))
}
