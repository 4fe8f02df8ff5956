const cpuMs = () => {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

/**
 * Measures the longest turn of the event loop in ms of processor time, which a busy machine does not lengthen. The
 * returned function ends the measurement.
 */
export function watchTurns(): () => number {
  let longestMs = 0
  let lastMs = cpuMs()
  let next: NodeJS.Immediate
  const turn = () => {
    const nowMs = cpuMs()
    longestMs = Math.max(longestMs, nowMs - lastMs)
    lastMs = nowMs
    next = setImmediate(turn)
  }
  next = setImmediate(turn)
  return () => {
    clearImmediate(next)
    return longestMs
  }
}

/** Counts what happens in each turn of the event loop. `end` ends that, and returns the most in one turn. */
export function countInTurns() {
  let most = 0
  let now = 0
  let next: NodeJS.Immediate
  const turn = () => {
    most = Math.max(most, now)
    now = 0
    next = setImmediate(turn)
  }
  next = setImmediate(turn)
  return {
    count() {
      now += 1
    },
    end() {
      clearImmediate(next)
      return Math.max(most, now)
    },
  }
}
