import { poll } from '#platform/poll.ts'

/** Waits until `check` returns something truthy, and returns that; throws after `timeoutMs` and names `what`. */
export async function until<T>(what: string, check: () => T | Promise<T>, timeoutMs = 30_000) {
  const found = await poll(check, { pauseMs: 20, timeoutMs })
  if (found === undefined) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
  return found
}
