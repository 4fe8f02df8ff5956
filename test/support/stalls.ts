import { monitorEventLoopDelay } from 'node:perf_hooks'

const tickMs = 20

/**
 * Begins to measure how long this process does not get to run, which no time that it takes is to be blamed for. The
 * answer, in ms, is of the time until it is asked for.
 */
export function watchStalls(): () => number {
  const ticks = monitorEventLoopDelay({ resolution: tickMs })
  ticks.enable()
  return () => {
    ticks.disable()
    return ticks.count === 0 ? 0 : Math.max(0, (ticks.mean / 1e6 - tickMs) * ticks.count)
  }
}
