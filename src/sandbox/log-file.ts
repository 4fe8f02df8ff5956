import { open, stat, truncate, writeFile } from 'node:fs/promises'
import type { LogPage } from './driver.ts'
import { maxPageBytes, splitLines, toLogLine } from './log-lines.ts'

const maxBytes = 5 * 1024 * 1024
const newline = 0x0a
const nothing = Buffer.alloc(0)

const orWhenMissing =
  <T>(value: T) =>
  (error: NodeJS.ErrnoException): T => {
    if (error.code === 'ENOENT') return value
    throw error
  }

interface FileEnd {
  bytes: Buffer
  /** The size of the whole file, up to this number of bytes. */
  size: number
}

async function readEnd(path: string, bytes: number): Promise<FileEnd> {
  await using file = await open(path, 'r')
  const { size } = await file.stat()
  const content = Buffer.alloc(Math.min(size, bytes))
  const { bytesRead } = await file.read(content, 0, content.length, size - content.length)
  return { bytes: content.subarray(0, bytesRead), size: size - content.length + bytesRead }
}

/** The bytes from `start` on: 1 MiB, or more up to the end of a longer line. */
async function readFrom(path: string, start: number): Promise<Buffer> {
  const file = await open(path, 'r').catch(orWhenMissing(null))
  if (!file) return nothing
  await using _closed = file
  const chunks: Buffer[] = []
  for (let at = start; ; ) {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(maxPageBytes), 0, maxPageBytes, at)
    chunks.push(buffer.subarray(0, bytesRead))
    at += bytesRead
    if (bytesRead < maxPageBytes || buffer.includes(newline)) return Buffer.concat(chunks)
  }
}

/**
 * Limits a log to which a program appends to 5 MB, and keeps the previous 5 MB. The log is copied and truncated,
 * because the program keeps the file open; output between the two steps is lost.
 */
export async function rotateLog(path: string): Promise<void> {
  const size = await stat(path).then(({ size }) => size, orWhenMissing(0))
  if (size <= maxBytes) return
  await writeFile(`${path}.1`, (await readEnd(path, maxBytes)).bytes, { mode: 0o600 })
  await truncate(path)
}

/**
 * A position in a log: the offset in bytes, and the file's identity. A truncated log keeps its name, but the time of
 * the copy beside it changes.
 */
interface Position {
  offset: number
  copiedAt: number
}
const toText = ({ offset, copiedAt }: Position) => `${offset}@${copiedAt}`
const fromText = (text: string): Position => {
  const [offset = 0, copiedAt = 0] = text.split('@').map(Number)
  return { offset, copiedAt }
}

/** The last lines of both files; the second one grows. */
async function lastPage(path: string, count: number, copiedAt: number): Promise<LogPage> {
  const [before, current] = await Promise.all(
    [`${path}.1`, path].map((part) => readEnd(part, maxPageBytes).catch(orWhenMissing({ bytes: nothing, size: 0 }))),
  )
  const { bytes: old } = before as FileEnd
  const { bytes, size } = current as FileEnd
  const page = Buffer.concat([old, bytes]).subarray(-maxPageBytes)
  const isWhole = page.length === old.length + size
  const { lines, rest } = splitLines(page)
  const shown = (isWhole ? lines : lines.slice(1)).slice(-count)
  return {
    lines: count === 0 ? [] : shown.map(toLogLine),
    rest: rest.length > 0 ? toLogLine(rest) : null,
    position: toText({ offset: Math.max(0, size - rest.length), copiedAt }),
    hasGap: false,
  }
}

/** The first lines behind a position, without a line that has no end yet. */
async function nextPage(path: string, count: number, after: Position, copiedAt: number): Promise<LogPage> {
  const hasGap = after.copiedAt !== copiedAt
  const start = hasGap ? 0 : after.offset
  const bytes = await readFrom(path, start)
  const { lines, rest } = splitLines(bytes)
  const shown = lines.slice(0, count)
  const read = shown.reduce((sum, line) => sum + line.length + 1, 0)
  return {
    lines: shown.map(toLogLine),
    rest: shown.length === lines.length && rest.length > 0 ? toLogLine(rest) : null,
    position: toText({ offset: start + read, copiedAt }),
    hasGap,
  }
}

/**
 * Reads lines of a log: the last ones, or those behind a position. Lines that were copied away unread are a gap.
 * Returns null when there is no log.
 */
export async function readLog(
  path: string,
  { lines, after }: { lines: number; after?: string | undefined },
): Promise<LogPage> {
  const copiedAt = await stat(`${path}.1`).then(({ mtimeMs }) => mtimeMs, orWhenMissing(0))
  return after === undefined ? lastPage(path, lines, copiedAt) : nextPage(path, lines, fromText(after), copiedAt)
}
