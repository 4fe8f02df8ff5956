import type { Db } from '#database/client.ts'
import { readValue, storeValue } from '#database/installation.ts'

/** The rows of each table that a run of a part reads: what is read then takes as long with a million rows as with these. */
export const rowsOfAPart = 1000

/** Where the installation keeps the positions. */
const positionsName = 'doctor-positions'

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
  /** Where the next run goes on. */
  reached: Positions
  /** Whether there was more than it read. */
  isCut: boolean
}

export const startPart = (from: Positions): Part => ({ from, reached: {}, isCut: Object.keys(from).length > 0 })

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
  let last = from
  let rows = 0
  for await (const page of read(from)) {
    if (last) part.reached[table] = last
    if (rows >= rowsOfAPart) {
      part.isCut = true
      return
    }
    yield page
    rows += page.rows
    last = page.last
  }
  delete part.reached[table]
}

/** Where the last run of a part ended. */
export async function readPositions(db: Db): Promise<Positions> {
  const stored = await readValue(db, positionsName)
  return stored === undefined ? {} : JSON.parse(stored)
}

export const storePositions = (db: Db, positions: Positions): Promise<void> =>
  storeValue(db, positionsName, JSON.stringify(positions))
