import { setTimeout as sleep } from 'node:timers/promises'
import type Docker from 'dockerode'
import pMap from 'p-map'
import { lastingUse } from '#sandbox/lasting-use.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { statsOf } from './measure.ts'
import { lowShares, usualShares } from './profile.ts'

/** The pause between two looks, and the containers of one: so that their number is no load for dockerd. */
const pauseMs = 2000
const looksAtOnce = 10
const concurrency = 5
const nanosecondsPerSecond = 1e9

/**
 * Gives containers that have computed nearly without a pause since the last look at them a tenth of the weight of the
 * others, and the others their weight back. It counts only while a processor is busy. A call waits until the last look is
 * 2 s ago, and looks at the next ten of the containers that `list` returns. A container that ends meanwhile is no error.
 */
export function createWeighing(
  client: DockerClient,
  list: (signal: AbortSignal) => Promise<Docker.ContainerInfo[]>,
): (signal: AbortSignal) => Promise<void> {
  const seen = new Map<string, { at: number; seconds: number }>()
  let lastId = ''
  let nextAt = 0

  async function weigh(id: string, signal: AbortSignal): Promise<void> {
    const inspected = await client.callUnless([404], signal, (docker, abortSignal) =>
      docker.getContainer(id).inspect({ abortSignal }),
    )
    const stats = inspected && (await statsOf(client, id, signal))
    if (!stats) return
    const { NanoCpus = 0, CpuShares } = inspected.HostConfig
    const { cpu_usage, online_cpus } = stats.cpu_stats
    const now = { at: performance.now() / 1000, seconds: cpu_usage.total_usage / nanosecondsPerSecond }
    const last = seen.get(id) ?? now
    seen.set(id, now)
    const processors = Math.min(NanoCpus / nanosecondsPerSecond || Number.POSITIVE_INFINITY, online_cpus || 1)
    const isLasting = now.seconds - last.seconds > lastingUse * processors * (now.at - last.at)
    const shares = isLasting ? lowShares : usualShares
    if (shares === (CpuShares || usualShares)) return
    await client.callUnless([404, 409], signal, (docker, abortSignal) =>
      docker.getContainer(id).update({ ...inBody({ CpuShares: shares }), abortSignal }),
    )
  }

  return async (signal) => {
    await sleep(Math.max(0, nextAt - performance.now()), undefined, { signal })
    nextAt = performance.now() + pauseMs
    const running = (await list(signal)).filter(({ State }) => State === 'running').map(({ Id }) => Id)
    const isRunning = new Set(running)
    for (const id of seen.keys()) if (!isRunning.has(id)) seen.delete(id)
    const ids = running.sort()
    const next = [...ids.filter((id) => id > lastId), ...ids.filter((id) => id <= lastId)].slice(0, looksAtOnce)
    lastId = next.at(-1) ?? ''
    await pMap(next, (id) => weigh(id, signal), { concurrency })
  }
}
