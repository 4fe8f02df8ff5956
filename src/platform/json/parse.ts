import { isUtf8 } from 'node:buffer'
import { parse } from 'secure-json-parse'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { exceededBound, type JsonBounds } from './bounds.ts'
import { refusedJson } from './faults.ts'

/** In valid UTF-8, only an escape can encode half of a surrogate pair. */
const surrogateEscape = /\\u[dD][89a-fA-F]/

/** Whether all text in a parsed body is Unicode: the database would replace half of a surrogate pair. */
function isWellFormed(value: unknown): boolean {
  if (typeof value === 'string') return value.isWellFormed()
  if (typeof value !== 'object' || value === null) return true
  return Object.entries(value).every(([key, part]) => key.isWellFormed() && isWellFormed(part))
}

const prototypes = { protoAction: 'error', constructorAction: 'error' } as const

/** Throws AppError for bytes that exceed the bounds, or are not UTF-8. Builds no value. */
function check(bytes: Uint8Array, bounds: JsonBounds): void {
  if (!bounds.isLenient && !isUtf8(bytes)) throw new AppError('invalid_json', texts.notUtf8)
  const exceeded = exceededBound(bytes, bounds)
  if (exceeded === 'depth') throw new AppError('invalid_json', texts.tooDeep(bounds.depth))
  if (exceeded === 'values') throw new AppError('too_large', texts.tooManyValues(bounds.values))
}

function parseText(text: string, isLenient: boolean): unknown {
  let value: unknown
  try {
    value = isLenient ? JSON.parse(text) : parse(text, prototypes)
  } catch {
    throw refusedJson(text)
  }
  if (!isLenient && surrogateEscape.test(text) && !isWellFormed(value))
    throw new AppError('invalid_json', texts.notUnicode)
  return value
}

/**
 * Parses JSON in UTF-8. Refuses texts beyond the bounds before it builds any value, then `__proto__` and
 * `constructor.prototype`, and text that is not Unicode, unless the bounds are lenient. Throws AppError `too_large`, or
 * `invalid_json` with the position of the fault.
 */
export function parseJson(bytes: Uint8Array, bounds: JsonBounds): unknown {
  check(bytes, bounds)
  const { buffer, byteOffset, byteLength } = bytes
  return parseText(Buffer.from(buffer, byteOffset, byteLength).toString('utf8'), bounds.isLenient === true)
}
