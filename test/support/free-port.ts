import { randomInt } from 'node:crypto'
import { isPortFree } from '#sandbox/local/reservations.ts'

/** A port of this machine that nobody has, nor gets by chance: the kernel hands out others, as do sandboxes' drivers. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(10_000, 20_000)
    if (await isPortFree(port)) return port
  }
}
