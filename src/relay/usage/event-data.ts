import type { FieldReader } from './json-fields.ts'

const newline = 0x0a
const carriageReturn = 0x0d
const fieldName = Buffer.from('data:')

/**
 * Extracts the data of server-sent events, each a JSON text, from pieces that are cut anywhere. Lines end with `
 * ` or `\r
 * `, like those of all vendors.
 */
export function createEventDataReader(fields: FieldReader): Pick<FieldReader, 'read'> {
  /** The length of the parsed prefix of the field name in this line; null for a line of another field. */
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
