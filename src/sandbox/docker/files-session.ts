import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { SandboxCapacityError, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { FilesAnswer, FilesCall, FilesRange } from './image/files-program.ts'
import { type Frame, frame, headFrame, readFrames } from './image/frames.ts'
import { readOutput } from './output.ts'

/** The files program in a container, which carries out one call after another. */
export interface FilesSession {
  /** Whether it has ended, or was ended. */
  readonly isOver: boolean
  /** Carries out a call; content is sent along. Throws what the files' own code threw there. */
  ask(
    call: FilesCall,
    content?: AsyncIterable<Buffer>,
  ): Promise<Exclude<FilesAnswer, { fault: unknown } | { full: unknown } | { failed: unknown }>>
  /** The part of the file that the last `read` has opened; null closes it. To be read to its end, or the session ended. */
  take(range: FilesRange): AsyncGenerator<Buffer, void>
  /** Fulfilled once it is over. */
  readonly over: Promise<void>
  end(): void
}

/** Of content in one frame: each is held in memory at either end. */
const maxDataBytes = 1024 * 1024

const ended = () => new SandboxUnavailableError(new Error('the files program has ended'))

async function* outputOf(socket: Duplex, onError: (text: string) => void): AsyncGenerator<Buffer, void> {
  for await (const { stream, bytes } of readOutput(socket)) {
    if (stream === 'stdout') yield bytes
    else onError(bytes.toString())
  }
}

/** Speaks with the files program over the stream to it. */
export function createFilesSession(socket: Duplex): FilesSession {
  let complaint = ''
  const over = Promise.withResolvers<void>()
  socket.once('close', () => over.resolve())
  const frames = readFrames(
    outputOf(socket, (text) => {
      complaint = (complaint + text).slice(-500)
    }),
  )

  async function next(): Promise<Frame> {
    const { value } = await frames.next().catch((cause) => {
      throw new SandboxUnavailableError(cause)
    })
    if (!value) throw complaint ? new SandboxUnavailableError(new Error(complaint)) : ended()
    return value
  }

  async function send(bytes: Buffer): Promise<void> {
    if (socket.destroyed || !socket.writable) throw ended()
    if (!socket.write(bytes)) await Promise.race([once(socket, 'drain'), over.promise])
  }

  async function sendAll(content: AsyncIterable<Buffer>): Promise<void> {
    for await (const chunk of content) {
      for (let start = 0; start < chunk.length; start += maxDataBytes)
        await send(frame('data', chunk.subarray(start, start + maxDataBytes)))
    }
    await send(frame('end'))
  }

  function answerIn({ payload }: Frame) {
    const answer: FilesAnswer = JSON.parse(payload.toString())
    if (!('fault' in answer || 'full' in answer || 'failed' in answer)) return answer
    socket.destroy() // the program ends after a failure
    if ('fault' in answer) throw new SandboxPathError(answer.fault, answer.message)
    if ('full' in answer) throw new SandboxCapacityError(answer.full)
    throw new SandboxUnavailableError(new Error(answer.failed))
  }

  return {
    get isOver() {
      return socket.destroyed || socket.readableEnded
    },
    async ask(call, content) {
      await send(headFrame(call))
      const answer = next()
      // The answer may come first: the content is too long, or the disk full. Its sender is not waited for then.
      if (content) await Promise.race([sendAll(content), answer])
      return answerIn(await answer)
    },
    async *take(range) {
      await send(headFrame(range))
      if (!range) return
      for (let part = await next(); part.kind !== 'end'; part = await next()) {
        if (part.kind === 'head') answerIn(part)
        yield part.payload
      }
    },
    over: over.promise,
    end: () => void socket.destroy(),
  }
}
