import { randomInt, randomUUID } from 'node:crypto'
import { link, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/**
 * Numbers that are unique on this host: one file a number, made exclusively, that holds the id of its sandbox. A crash
 * leaves a reservation that another `reserve` or `release` of the same sandbox takes up.
 */
export interface Reservations {
  /** A free number of the range that `isUsable` takes; throws when there is none. */
  reserve(id: string, isUsable: (number: number) => Promise<boolean>): Promise<number>
  /** Whether the number is reserved for this sandbox, and nobody else. */
  isHeldBy(id: string, number: number): Promise<boolean>
  /** Frees all numbers of a sandbox. */
  release(id: string): Promise<void>
}

export function openReservations(folder: string, first: number, last: number): Reservations {
  const fileOf = (number: number) => join(folder, String(number))
  const holder = (number: number) => readFile(fileOf(number), 'utf8').catch(() => null)

  async function claim(id: string, number: number): Promise<boolean> {
    const draft = join(folder, `.${randomUUID()}`)
    await writeFile(draft, id, { mode: 0o600 })
    try {
      await link(draft, fileOf(number)) // whole and exclusive at once
      return true
    } catch (error) {
      if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false
      throw error
    } finally {
      await rm(draft)
    }
  }

  return {
    async reserve(id, isUsable) {
      await mkdir(folder, { recursive: true, mode: 0o700 })
      const size = last - first + 1
      const offset = randomInt(size) // so that creates at the same time do not race for the same numbers
      for (let step = 0; step < size; step += 1) {
        const number = first + ((offset + step) % size)
        if ((await holder(number)) === null && (await isUsable(number)) && (await claim(id, number))) return number
      }
      throw new Error(`no free number from ${first} to ${last} in ${folder}`)
    },
    async isHeldBy(id, number) {
      return (await holder(number)) === id
    },
    async release(id) {
      for (const name of await readdir(folder).catch(() => [])) {
        if ((await holder(Number(name))) === id) await rm(join(folder, name), { force: true })
      }
    },
  }
}
