/** Resolves when the promise settles, however it does, and at the latest after `ms`: for ends that must not be waited for longer. */
export async function atMost(ms: number, promise: Promise<unknown>): Promise<void> {
  const { promise: late, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  await Promise.race([promise.catch(() => {}), late])
  clearTimeout(timer)
}
