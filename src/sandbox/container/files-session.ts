import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { SandboxCapacityError, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { FilesAnswer, FilesCall, FilesRange } from './image/files-program.ts'
import { type Frame, frame, headFrame, readFrames } from './image/frames.ts'
import { readOutput } from './output.ts'

/** A connection to the files program in a container, which carries out one call after another. */
export interface FilesSession {
  /** Whether the program has ended, or its session was ended. */
  readonly isOver: boolean
  /** Carries out a call, with content for a write. Throws the error of the file access in the container. */
  ask(call: FilesCall, content?: AsyncIterable<Buffer>): Promise<unknown>
  /** Part of the file opened by the last `read`. The caller reads to the end, or ends the session. */
  content(range: FilesRange): AsyncGenerator<Buffer, void>
  /** Fulfilled once the connection is closed. */
  readonly over: Promise<void>
  end(): void
}

/** Maximum content in one frame, which both ends hold in memory. */
const maxDataBytes = 1024 * 1024
const maxErrorLength = 500

const ended = () => new SandboxUnavailableError(new Error('the files program has ended'))

async function* outputOf(socket: Duplex, onError: (text: string) => void): AsyncGenerator<Buffer, void> {
  for await (const { stream, bytes } of readOutput(socket)) {
    if (stream === 'stdout') yield bytes
    else onError(bytes.toString())
  }
}

/** Creates a session over the stream to the files program. */
export function createFilesSession(socket: Duplex): FilesSession {
  let errors = ''
  const closed = Promise.withResolvers<void>()
  socket.once('close', () => closed.resolve())
  const frames = readFrames(
    outputOf(socket, (text) => {
      errors = (errors + text).slice(-maxErrorLength)
    }),
  )

  async function next(): Promise<Frame> {
    const { value } = await frames.next().catch((cause) => {
      throw new SandboxUnavailableError(cause)
    })
    if (!value) throw errors ? new SandboxUnavailableError(new Error(errors)) : ended()
    return value
  }

  async function send(bytes: Buffer): Promise<void> {
    if (socket.destroyed || !socket.writable) throw ended()
    if (!socket.write(bytes)) await Promise.race([once(socket, 'drain'), closed.promise])
  }

  async function sendAll(content: AsyncIterable<Buffer>): Promise<void> {
    for await (const chunk of content) {
      for (let start = 0; start < chunk.length; start += maxDataBytes)
        await send(frame('data', chunk.subarray(start, start + maxDataBytes)))
    }
    await send(frame('end'))
  }

  function resultIn({ payload }: Frame): unknown {
    const answer: FilesAnswer = JSON.parse(payload.toString())
    if ('result' in answer) return answer.result
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
      // If the content is too long or the disk is full, the answer comes before the end of the content.
      if (content) await Promise.race([sendAll(content), answer])
      return resultIn(await answer)
    },
    async *content(range) {
      await send(headFrame(range))
      for (let part = await next(); part.kind !== 'end'; part = await next()) {
        if (part.kind === 'head') resultIn(part)
        yield part.payload
      }
    },
    over: closed.promise,
    end: () => void socket.destroy(),
  }
}
