import { monitorEventLoopDelay } from 'node:perf_hooks'

const tickMs = 20

/**
 * Starts to measure how long the event loop of this process stands still, as on a busy machine. The returned function
 * ends the measurement and returns the sum in ms: a test subtracts it from a time that it limits.
 */
export function watchStalls(): () => number {
  const ticks = monitorEventLoopDelay({ resolution: tickMs })
  ticks.enable()
  return () => {
    ticks.disable()
    return ticks.count === 0 ? 0 : Math.max(0, (ticks.mean / 1e6 - tickMs) * ticks.count)
  }
}
