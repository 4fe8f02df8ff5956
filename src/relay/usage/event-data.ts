import type { FieldReader } from './json-fields.ts'

const newline = 0x0a
const carriageReturn = 0x0d
const fieldName = Buffer.from('data:')

/**
 * Reads the data of server-sent events, each of which is a JSON text, in pieces that are cut anywhere. Lines end with
 * `\n` or `\r\n`, as those of all vendors do.
 */
export function createEventDataReader(fields: FieldReader): Pick<FieldReader, 'read'> {
  /** How much of the name has come at the beginning of the line; null for the line of another field. */
  let matched: number | null = 0
  let isBlank = true
  return {
    read(piece) {
      for (let at = 0; at < piece.length; ) {
        const end = piece.indexOf(newline, at)
        const until = end === -1 ? piece.length : end
        for (; at < until && matched !== null && matched < fieldName.length; at += 1) {
          if (piece[at] !== carriageReturn) isBlank = false
          matched = piece[at] === fieldName[matched] ? matched + 1 : null
        }
        if (matched === fieldName.length && at < until) fields.read(piece.subarray(at, until))
        if (end === -1) return
        if (isBlank) fields.reset()
        matched = 0
        isBlank = true
        at = end + 1
      }
    },
  }
}
