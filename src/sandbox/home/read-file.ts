import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { addAbortSignal, Readable } from 'node:stream'
import type { OpenFile } from '#sandbox/driver.ts'
import { type Home, pathError } from './open-folder.ts'

const { O_NOFOLLOW, O_NONBLOCK, O_RDONLY, S_IROTH } = constants

const chunkBytes = 256 * 1024
const maxDateMs = 8.64e15

/** The nearest Date: the tenant can set file times that a Date cannot hold. */
export const dateOf = (ms: number) => new Date(Math.max(-maxDateMs, Math.min(maxDateMs, ms)))

function contentOf(
  file: FileHandle,
  path: string,
  range: { start: number; end: number },
  signal: AbortSignal,
): Readable {
  let { start } = range
  const content = new Readable({
    highWaterMark: chunkBytes,
    async read() {
      if (start >= range.end) return void this.push(null)
      try {
        const chunk = Buffer.allocUnsafeSlow(Math.min(chunkBytes, range.end - start))
        const { bytesRead } = await file.read(chunk, 0, chunk.length, start)
        if (bytesRead === 0) throw pathError('changed', path)
        start += bytesRead
        this.push(chunk.subarray(0, bytesRead))
      } catch (error) {
        this.destroy(error as Error)
      }
    },
    destroy(error, done) {
      file.close().then(() => done(error), done)
    },
  })
  return addAbortSignal(signal, content)
}

/**
 * Opens a plain file, no pipe or device. The tenant can make a hard link to a file of another user: that is opened only
 * if every user may read it. Errors name the file by `shownPath`.
 */
export async function openPlain(
  path: string,
  { home, shownPath, maxBytes }: { home: Home; shownPath: string; maxBytes: number },
  signal: AbortSignal,
): Promise<OpenFile> {
  const file = await open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK)
  try {
    const stat = await file.stat()
    if (stat.isDirectory()) throw pathError('directory', shownPath)
    const isReadable = home.uid === null || stat.uid === home.uid || (stat.mode & S_IROTH) !== 0
    if (!stat.isFile()) throw pathError('special', shownPath)
    if (!isReadable) throw pathError('forbidden', shownPath)
    if (stat.size > maxBytes) throw pathError('too_large', shownPath)
    const { size, mtimeMs } = stat
    return {
      size,
      modifiedAt: dateOf(mtimeMs),
      content: (range = { start: 0, end: size }) => contentOf(file, shownPath, range, signal),
      close: () => file.close(),
    }
  } catch (error) {
    await file.close()
    throw error
  }
}
