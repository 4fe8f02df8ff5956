import { setTimeout as sleep } from 'node:timers/promises'

/** Waits until `check` answers something truthy, and returns it; throws after `timeoutMs`, saying what was waited for. */
export async function until<T>(what: string, check: () => T | Promise<T>, timeoutMs = 30_000): Promise<NonNullable<T>> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const value = await check()
    if (value) return value
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
    await sleep(20)
  }
}
