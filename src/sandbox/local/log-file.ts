import { open, stat, truncate, writeFile } from 'node:fs/promises'

const maxBytes = 5 * 1024 * 1024
const shownBytes = 64 * 1024

const orWhenMissing =
  <T>(value: T) =>
  (error: NodeJS.ErrnoException): T => {
    if (error.code === 'ENOENT') return value
    throw error
  }

async function readEnd(path: string, bytes: number): Promise<Buffer> {
  await using file = await open(path, 'r')
  const { size } = await file.stat()
  const content = Buffer.alloc(Math.min(size, bytes))
  const { bytesRead } = await file.read(content, 0, content.length, size - content.length)
  return content.subarray(0, bytesRead)
}

/**
 * Limits a log to which a program appends to 5 MB, and keeps the 5 MB before them. The log is copied and truncated,
 * since the program keeps the file open; output between the two steps is lost.
 */
export async function rotateLog(path: string): Promise<void> {
  const size = await stat(path).then(({ size }) => size, orWhenMissing(0))
  if (size <= maxBytes) return
  await writeFile(`${path}.1`, await readEnd(path, maxBytes), { mode: 0o600 })
  await truncate(path)
}

/** The last lines of a log, at most 64 KiB; empty when there is no log. */
export async function lastLines(path: string, lines: number): Promise<string> {
  const parts = [`${path}.1`, path].map((part) => readEnd(part, shownBytes).catch(orWhenMissing(Buffer.alloc(0))))
  const text = Buffer.concat(await Promise.all(parts))
    .subarray(-shownBytes)
    .toString()
  const all = text.replace(/\n$/, '').split('\n')
  return all.slice(-lines).join('\n')
}
