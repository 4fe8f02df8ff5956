import type { Db } from '#database/client.ts'
import { readValue, storeValue } from '#database/installation.ts'
import { isId } from '#platform/ids.ts'

/** The rows of each table that a run of a part reads: what is read then takes as long with a million rows as with these. */
export const rowsOfAPart = 1000

/** The name of the value of this installation that holds the last run of a part. */
const lastPartName = 'doctor-part'

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
 * table the next run begins with the first one. It does so in any case where keys have other parts than ids, which may
 * be words of customers, such as names of sessions: those are not kept.
 */
export async function* pagesOf<P extends Page>(
  part: Part | undefined,
  table: string,
  read: (after: Key | undefined) => AsyncIterable<P>,
): AsyncGenerator<P> {
  if (!part) return yield* read(undefined)
  const from = part.from[table]
  const wasCut = part.isCut || from !== undefined
  part.isCut = true // also when its reader has found enough, and asks for no other page
  let rows = 0
  for await (const page of read(from)) {
    if (rows >= rowsOfAPart) return
    if (page.last.every(isId)) part.reached[table] = page.last
    yield page
    rows += page.rows
  }
  delete part.reached[table]
  part.isCut = wasCut
}

/** Where the last run of a part began and ended. */
export interface LastPart {
  from: Positions
  reached: Positions
}

/** The last run of a part; one that read nothing when there was none. */
export async function readLastPart(db: Db): Promise<LastPart> {
  const stored = await readValue(db, lastPartName)
  return stored === undefined ? { from: {}, reached: {} } : JSON.parse(stored)
}

export const storeLastPart = (db: Db, { from, reached }: LastPart): Promise<void> =>
  storeValue(db, lastPartName, JSON.stringify({ from, reached }))
