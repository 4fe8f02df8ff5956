import { StringDecoder } from 'node:string_decoder'
import type { LogLine } from './driver.ts'

/** Maximum bytes of a page of a log, whatever the number of its lines. */
export const maxPageBytes = 1024 * 1024
const maxLineBytes = 16 * 1024
const newline = 0x0a

/** The line of these bytes, cut after 16 KiB. */
export function toLogLine(bytes: Buffer): LogLine {
  const text = new StringDecoder('utf8').write(bytes.subarray(0, maxLineBytes)) // leaves out half a character
  return { text: text.replace(/\r$/, ''), isCut: bytes.length > maxLineBytes }
}

/** The complete lines, and the bytes after the last one. */
export function splitLines(bytes: Buffer): { lines: Buffer[]; rest: Buffer } {
  const lines: Buffer[] = []
  let start = 0
  for (let end = bytes.indexOf(newline); end >= 0; end = bytes.indexOf(newline, start)) {
    lines.push(bytes.subarray(start, end))
    start = end + 1
  }
  return { lines, rest: bytes.subarray(start) }
}
