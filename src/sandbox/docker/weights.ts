import { setTimeout as sleep } from 'node:timers/promises'
import type Docker from 'dockerode'
import pMap from 'p-map'
import { lastingUse, severalThreads } from '#sandbox/lasting-use.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { runnableThreads, statsOf } from './measure.ts'
import { lowestShares, lowShares, usualShares } from './profile.ts'

/** The pause between two looks, and the containers of one: so that their number is no load for dockerd. */
const pauseMs = 2000
const looksAtOnce = 10
const concurrency = 5
const nanosecondsPerSecond = 1e9
/** An agent that is given one turn after another has several threads that want a processor at 0.13 of the looks. */
const crowdedLooks = 4
/** One with little weight that gets less of its processors has it back, or its gateway would not answer. */
const leastUse = 0.2

interface Look {
  at: number
  seconds: number
  /** How many looks in a row, up to this one, found several threads that want a processor. */
  crowded: number
}

export const sharesOf = ({ HostConfig }: Docker.ContainerInspectInfo): number => HostConfig.CpuShares || usualShares

/** A container that was removed, or is just being removed, is no error. */
export const setShares = (client: DockerClient, id: string, shares: number, signal: AbortSignal): Promise<unknown> =>
  client.callUnless([404, 409], signal, (docker, abortSignal) =>
    docker.getContainer(id).update({ ...inBody({ CpuShares: shares }), abortSignal }),
  )

/**
 * Gives containers that have computed nearly without a pause since the last look at them a tenth of the weight of the
 * others, those of which several threads want a processor at four looks in a row the least weight, and the others their
 * weight back. It counts only while a processor is busy. A call waits until the last look is 2 s ago, and looks at the
 * next ten of the containers that `list` returns. A container that ends meanwhile is no error.
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
    const { NanoCpus = 0 } = inspected.HostConfig
    const { cpu_usage, online_cpus } = stats.cpu_stats
    const now = { at: performance.now() / 1000, seconds: cpu_usage.total_usage / nanosecondsPerSecond }
    const before = seen.get(id)
    // Its processor time begins anew with each start.
    const last = before && before.seconds <= now.seconds ? before : { ...now, crowded: 0 }
    const processors = Math.min(NanoCpus / nanosecondsPerSecond || Number.POSITIVE_INFINITY, online_cpus || 1)
    const use = now.at > last.at ? (now.seconds - last.seconds) / (now.at - last.at) / processors : 0
    const isLasting = use > lastingUse
    const sharesBefore = sharesOf(inspected)
    // With few shares it may get less than it asks for.
    const isBusy = isLasting || (sharesBefore !== usualShares && use > leastUse)
    const isCrowded = isBusy && (await runnableThreads(client, id, signal)) >= severalThreads
    const crowded = isCrowded ? last.crowded + 1 : 0
    seen.set(id, { ...now, crowded })
    const sharesOfBusy = crowded >= crowdedLooks ? lowestShares : lowShares
    const shares = isLasting || isCrowded ? sharesOfBusy : usualShares
    if (shares !== sharesBefore) await setShares(client, id, shares, signal)
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
