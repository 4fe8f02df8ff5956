// What the thread does that thread.ts starts.
import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { basename } from 'node:path'
import { move, transferableSymbol, valueSymbol } from 'piscina'
import { AppError } from '#platform/errors.ts'
import type { JsonBounds } from './bounds.ts'
import type { ValueInParts } from './long-texts.ts'
import { parseInParts } from './parse.ts'

/** Of large texts: on a busy machine everything else goes first. */
const niceness = 10
try {
  setPriority(Number(basename(readlinkSync('/proc/thread-self'))), niceness) // on Linux each thread has its own
} catch {} // not Linux

export interface ParseTask {
  bytes: Uint8Array
  bounds: JsonBounds
}

/** An AppError does not reach another thread as one. */
export type Parsed = ValueInParts | { value: unknown } | { refused: Pick<AppError, 'code' | 'message'> }

/** An answer that moves the bytes in it, with the properties that Piscina wants. */
const moved = (parsed: ValueInParts) => move({ [transferableSymbol]: parsed.bytes.buffer, [valueSymbol]: parsed })

export function parse({ bytes, bounds }: ParseTask) {
  try {
    const parsed = parseInParts(bytes, bounds)
    return 'bytes' in parsed ? moved(parsed) : parsed
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    const { code, message } = error
    return { refused: { code, message } } satisfies Parsed
  }
}
