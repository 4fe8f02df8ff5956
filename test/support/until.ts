import { poll } from '#platform/poll.ts'

/** A check may be a request and a query: a long wait with short pauses would take much of a processor. */
const pauseMs = (checks: number) => Math.min(20 * 1.25 ** checks, 200)

/** Waits until `check` returns something truthy, and returns that; throws after `timeoutMs` and names `what`. */
export async function until<T>(what: string, check: () => T | Promise<T>, timeoutMs = 30_000) {
  const found = await poll(check, { pauseMs, timeoutMs })
  if (found === undefined) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
  return found
}
