import { setTimeout as sleep } from 'node:timers/promises'
import type Docker from 'dockerode'
import pMap from 'p-map'
import {
  type Demand,
  demandAfter,
  noDemand,
  type Priority,
  processorsWanted,
  startSeconds,
} from '#sandbox/processor-demand.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { busyThreads, statsOf } from './measure.ts'
import { labels, lowestShares, lowShares, roleLabels, usualShares } from './profile.ts'

/** The pause between two looks, and the containers of one: so that their number is no load for dockerd. */
const pauseMs = 2000
const looksAtOnce = 10
const concurrency = 5
const nanosecondsPerSecond = 1e9
/** After a longer pause, in which another worker may have looked, no look counts that was before it. */
const longestPauseMs = 10_000
const sharesFor: Record<Priority, number> = { usual: usualShares, low: lowShares, lowest: lowestShares }

interface Look {
  at: number
  seconds: number
  demand: Demand
}

export const sharesOf = ({ HostConfig }: Docker.ContainerInspectInfo): number => HostConfig.CpuShares || usualShares

/** A container that was removed, or is just being removed, is no error. */
export const setShares = (client: DockerClient, id: string, shares: number, signal: AbortSignal): Promise<unknown> =>
  client.callUnless([404, 409], signal, (docker, abortSignal) =>
    docker.getContainer(id).update({ ...inBody({ CpuShares: shares }), abortSignal }),
  )

/**
 * Gives containers with a low priority a tenth of the weight of the others, those with the lowest the least weight, and
 * the others their weight back. It counts only while a processor is busy. A call waits until the last look is 2 s ago,
 * and looks at the next ten of the containers that `list` returns. A container that ends meanwhile is no error.
 */
export function createWeighing(
  client: DockerClient,
  list: (signal: AbortSignal) => Promise<Docker.ContainerInfo[]>,
): (signal: AbortSignal) => Promise<void> {
  const seen = new Map<string, Look>()
  let lastId = ''
  let nextAt = 0

  async function weigh(id: string, signal: AbortSignal): Promise<void> {
    const inspected = await client.callUnless([404], signal, (docker, abortSignal) =>
      docker.getContainer(id).inspect({ abortSignal }),
    )
    const stats = inspected && (await statsOf(client, id, signal))
    if (!stats) return
    const now = {
      at: performance.now() / 1000,
      seconds: stats.cpu_stats.cpu_usage.total_usage / nanosecondsPerSecond,
    }
    const before = seen.get(id)
    // Its processor time begins anew with each start.
    const last = before && before.seconds <= now.seconds ? before : { ...now, demand: noDemand }
    const passed = now.at - last.at
    const used = passed > 0 ? (now.seconds - last.seconds) / passed : 0
    const { Config, HostConfig } = inspected
    const most = (HostConfig.NanoCpus ?? 0) / nanosecondsPerSecond || Number.POSITIVE_INFINITY
    const processors = Math.min(most, stats.cpu_stats.online_cpus || Number.POSITIVE_INFINITY)
    // A second room has no gateway, and its programs could end it again and again.
    const isStarting = Config.Labels[labels.role] === roleLabels.sandbox && now.seconds <= startSeconds
    const count = () => busyThreads(client, id, signal)
    const wanted = isStarting ? 'none' : await processorsWanted(used, processors, count)
    const demand = demandAfter(last.demand, passed, wanted)
    seen.set(id, { ...now, demand })
    const shares = sharesFor[demand.priority]
    if (shares !== sharesOf(inspected)) await setShares(client, id, shares, signal)
  }

  return async (signal) => {
    await sleep(Math.max(0, nextAt - performance.now()), undefined, { signal })
    if (performance.now() - nextAt > longestPauseMs) seen.clear()
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
