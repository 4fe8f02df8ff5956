import { mkdir, readdir, readFile, readlink, symlink, unlink } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { poll } from '#platform/poll.ts'
import { SandboxCapacityError } from '#sandbox/driver.ts'
import { usersWithProcesses } from './processes.ts'

const pollMs = 50
const portReleaseMs = 1000

export interface Range {
  first: number
  last: number
}

/**
 * Reserves numbers, each for one sandbox of the data folder. A reservation is a symbolic link from the number to the
 * sandbox's id: making it is exclusive and atomic. The reservations of a killed create are found by the id.
 */
export function createReservations(folder: string, range: Range, kind: string) {
  const holderOf = (number: number | string) => readlink(join(folder, String(number))).catch(() => null)

  async function heldBy(id: string): Promise<number[]> {
    const numbers = await readdir(folder).catch(() => [])
    const holders = await Promise.all(numbers.map(holderOf))
    return numbers.filter((_, index) => holders[index] === id).map(Number)
  }

  async function free(number: number): Promise<void> {
    await unlink(join(folder, String(number))).catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw error
    })
  }

  return {
    heldBy,
    free,
    /** Reserves a suitable number. Begins at random, so that other data folders on the machine get other numbers. */
    async take(id: string, isSuitable: (number: number) => boolean | Promise<boolean>): Promise<number> {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const count = range.last - range.first + 1
      const offset = Math.floor(Math.random() * count)
      for (let step = 0; step < count; step += 1) {
        const number = range.first + ((offset + step) % count)
        try {
          await symlink(id, join(folder, String(number)))
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code === 'EEXIST') continue
          throw error
        }
        if (await isSuitable(number)) return number
        await free(number)
      }
      throw new SandboxCapacityError(`every ${kind} from ${range.first} to ${range.last} is taken`)
    },
    async freeAllOf(id: string): Promise<void> {
      for (const number of await heldBy(id)) await free(number)
    },
  }
}

/** Whether a number is neither a user or group of this machine nor the user of a running process. */
export async function unusedUids(): Promise<(uid: number) => boolean> {
  const [users, groups, running] = await Promise.all([
    readFile('/etc/passwd', 'utf8'),
    readFile('/etc/group', 'utf8'),
    usersWithProcesses(),
  ])
  const known = new Set(`${users}\n${groups}`.split('\n').map((line) => Number(line.split(':')[2])))
  return (uid) => !known.has(uid) && !running.has(uid)
}

/** Whether a program could listen on the port of 127.0.0.1 now. */
export function isPortFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const server = createServer()
  server.once('error', () => resolve(false))
  server.listen({ host: '127.0.0.1', port, exclusive: true }, () => server.close(() => resolve(true)))
  return promise
}

/** Whether a port is free within a second: the kernel takes a moment to close that of a gateway that was killed. */
export const becomesFree = async (port: number, signal: AbortSignal): Promise<boolean> =>
  (await poll(() => isPortFree(port), { pauseMs: pollMs, timeoutMs: portReleaseMs, signal })) ?? false
