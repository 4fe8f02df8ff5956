import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { basename } from 'node:path'
import { move } from 'piscina'
import { AppError } from '#errors/app-error.ts'
import type { JsonBounds } from './bounds.ts'
import { parseJson } from './parse.ts'

/** Gives all other work on a busy machine priority. */
const niceness = 10
try {
  setPriority(Number(basename(readlinkSync('/proc/thread-self'))), niceness) // on Linux each thread has its own
} catch {} // not Linux

export interface ParseTask {
  bytes: Uint8Array
  bounds: JsonBounds
}

/** An AppError cannot be sent to another thread. */
export type Parsed = { value: unknown } | { refused: Pick<AppError, 'code' | 'message'> }

export function parse({ bytes, bounds }: ParseTask): Parsed {
  try {
    return { value: parseJson(bytes, bounds) }
  } catch (error) {
    if (!(error instanceof AppError)) throw error
    const { code, message } = error
    return { refused: { code, message } }
  }
}

export const write = (value: unknown) => move(Buffer.from(JSON.stringify(value)))
