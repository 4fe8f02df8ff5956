import pTimeout from 'p-timeout'

/** Interval, in ms, between keep-alive batches of a stream: less than the idle timeouts of common proxies. */
const signEveryMs = 15_000

/** Waits for a promise. Yields empty batches meanwhile, which keep a stream alive. Throws if the promise rejects. */
export async function* signsOfLife<T>(promise: Promise<T>): AsyncGenerator<never[], T> {
  const settled = promise.then(() => true)
  while (!(await pTimeout(settled, { milliseconds: signEveryMs, fallback: () => false }))) yield []
  return promise
}
