import { randomUUID } from 'node:crypto'
import { mkdir, readdir, readFile, readlink, rename, symlink, unlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { poll } from '#platform/poll.ts'
import { SandboxCapacityError } from '#sandbox/driver.ts'

const pollMs = 50
const portReleaseMs = 1000

type IsSuitable = (number: number) => boolean | Promise<boolean>

export interface Range {
  first: number
  last: number
}

function noneIfMissing(error: NodeJS.ErrnoException): null {
  if (error.code === 'ENOENT') return null
  throw error
}

/**
 * Reserves numbers, each for one sandbox of the data folder. A reservation is a symbolic link from the number to the
 * sandbox's id: creating it is exclusive and atomic. The reservations of a killed create are found by the id.
 *
 * With `lastFile`, which stores the last tried number, a number is reused only after all others.
 */
export function createReservations(folder: string, range: Range, kind: string, lastFile?: string) {
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

  const count = range.last - range.first + 1
  const after = (number: number) => (number >= range.first && number < range.last ? number + 1 : range.first)

  /** The last number; initially a random one, so that other data folders on the machine get other numbers. */
  async function readLast(): Promise<number> {
    const text = lastFile && (await readFile(lastFile, 'utf8').catch(noneIfMissing))
    return text ? Number(text) : range.first + Math.floor(Math.random() * count)
  }

  async function keepLast(number: number): Promise<void> {
    if (!lastFile) return
    const temporary = `${lastFile}-${randomUUID()}`
    await writeFile(temporary, String(number), { mode: 0o600, flush: true })
    await rename(temporary, lastFile)
  }

  async function takeNext(id: string, isSuitable: IsSuitable): Promise<number> {
    await mkdir(folder, { recursive: true, mode: 0o700 })
    let number = await readLast()
    for (let tried = 0; tried < count; tried += 1) {
      number = after(number)
      await keepLast(number) // first, so that the number reserved by a killed create also counts as taken
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
  }

  let taking: Promise<unknown> = Promise.resolve()

  return {
    heldBy,
    free,
    /** Reserves a suitable number. Serialized: concurrent calls would all try the same numbers. */
    take(id: string, isSuitable: IsSuitable): Promise<number> {
      const taken = taking.then(() => takeNext(id, isSuitable))
      taking = taken.catch(() => {})
      return taken
    },
    async freeAllOf(id: string): Promise<void> {
      for (const number of await heldBy(id)) await free(number)
    },
  }
}

/** Whether a program could listen on the port of 127.0.0.1 now. */
export function isPortFree(port: number): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const server = createServer()
  server.once('error', () => resolve(false))
  server.listen({ host: '127.0.0.1', port, exclusive: true }, () => server.close(() => resolve(true)))
  return promise
}

/** Whether a port is free within a second: the kernel needs a moment to close that of a killed gateway. */
export const becomesFree = async (port: number, signal: AbortSignal): Promise<boolean> =>
  (await poll(() => isPortFree(port), { pauseMs: pollMs, timeoutMs: portReleaseMs, signal })) ?? false
