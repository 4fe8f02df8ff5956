import { randomInt } from 'node:crypto'
import { isPortFree } from '#sandbox/local/reservations.ts'

/** Returns a free port outside of the ranges from which the kernel and the sandbox drivers take theirs. */
export async function freePort(): Promise<number> {
  for (;;) {
    const port = randomInt(10_000, 20_000)
    if (await isPortFree(port)) return port
  }
}
