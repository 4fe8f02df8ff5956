const tickMs = 20

/**
 * Begins to measure how long this process does not get to run, which no time that it takes is to be blamed for. The
 * answer, in ms, is of the time until it is asked for.
 */
export function watchStalls(): () => number {
  let stalledMs = 0
  let lastAt = performance.now()
  const timer = setInterval(() => {
    const now = performance.now()
    stalledMs += Math.max(0, now - lastAt - tickMs)
    lastAt = now
  }, tickMs)
  return () => {
    clearInterval(timer)
    return stalledMs + Math.max(0, performance.now() - lastAt - tickMs)
  }
}
