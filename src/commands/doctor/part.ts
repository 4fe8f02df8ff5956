import type { Db } from '#database/client.ts'
import { readValue, storeValue } from '#database/installation.ts'
import { canUnseal, type Vault } from '#platform/secrets.ts'

/** The rows of each table that a run of a part reads: what is read then takes as long with a million rows as with these. */
export const rowsOfAPart = 1000

/** Where the installation keeps the positions. */
const positionsName = 'doctor-positions'
const positionsPlace = `installation/${positionsName}/value` as const

/** The key of a row in the order that a table is read in. */
export type Key = readonly string[]

/** For each table that is read row by row, after which row the next run goes on; without the tables that it begins anew. */
export type Positions = Record<string, Key>

/** Rows of a table that were read together. */
export interface Page {
  /** How many were read, also those about which there is nothing to say. */
  rows: number
  /** The key of the last one. */
  last: Key
}

/** A run that reads a part of each table whose rows have to be looked at one by one. */
export interface Part {
  from: Positions
  /** Where the next run goes on; a table that was not read keeps its position. */
  reached: Positions
  /** Whether it did not read all. */
  isCut: boolean
}

export const startPart = (from: Positions): Part => ({ from, reached: { ...from }, isCut: false })

/**
 * The pages of a table: all of them, or in a part the next ones until there are enough rows. After the last page of the
 * table the next run begins with the first one.
 */
export async function* pagesOf<P extends Page>(
  part: Part | undefined,
  table: string,
  read: (after: Key | undefined) => AsyncIterable<P>,
): AsyncGenerator<P> {
  if (!part) return yield* read(undefined)
  const from = part.from[table]
  part.isCut ||= from !== undefined
  let rows = 0
  for await (const page of read(from)) {
    if (rows >= rowsOfAPart) {
      part.isCut = true
      return
    }
    // Before it is looked at: who has found enough in a page reads no other.
    part.reached[table] = page.last
    yield page
    rows += page.rows
  }
  delete part.reached[table]
}

/** Has the next run read the tables again that were read between two states of `reached`. */
export function readAgain(part: Part, before: Positions, after: Positions): void {
  for (const table of Object.keys({ ...before, ...after })) {
    if (before[table] === after[table]) continue
    const from = part.from[table]
    if (from) part.reached[table] = from
    else delete part.reached[table]
  }
}

/** Where the last run of a part ended; the beginning when nobody can read that. */
export async function readPositions(db: Db, vault: Vault | null): Promise<Positions> {
  const sealed = await readValue(db, positionsName)
  if (sealed === undefined || !vault || !canUnseal(vault, sealed, positionsPlace)) return {}
  return JSON.parse(vault.unseal(sealed, positionsPlace))
}

/** Stores them sealed, since keys of rows are also words of customers, such as names of sessions. */
export async function storePositions(db: Db, vault: Vault | null, positions: Positions): Promise<void> {
  if (vault) await storeValue(db, positionsName, vault.seal(JSON.stringify(positions), positionsPlace))
}
