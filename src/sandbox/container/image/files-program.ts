import { once } from 'node:events'
import { Readable } from 'node:stream'
import { SandboxCapacityError, SandboxPathError } from '#sandbox/errors.ts'
import { filesIn } from '#sandbox/home/files.ts'
import { readLog, rotateLog } from '#sandbox/log-file.ts'
import { type Frame, frame, headFrame, readFrames } from './frames.ts'

/**
 * A call: a method of SandboxFiles with its arguments, or `log`, which reads the gateway's log if it is in the volume.
 * Frames with the content follow a write.
 */
export type FilesCall =
  | { call: 'list'; path: string; maxEntries: number }
  | { call: 'stat'; path: string }
  | { call: 'read'; path: string; maxBytes: number }
  | { call: 'write'; path: string; mode?: number; maxBytes?: number }
  | { call: 'mkdir'; path: string }
  | { call: 'move'; from: string; to: string; overwrite: boolean }
  | { call: 'remove'; path: string; recursive: boolean }
  | { call: 'log'; lines: number; after?: string | undefined }

/**
 * The answer to a call. The result of a `read` is the size and time of the file: the caller sends a FilesRange, and
 * frames with that content follow.
 */
export type FilesAnswer =
  | { result: unknown }
  | { fault: SandboxPathError['fault']; message: string }
  | { full: string }
  | { failed: string }

/** The requested part of an opened file. */
export type FilesRange = { start: number; end: number }

const logPath = '/agent/gateway.log'
const files = filesIn(async () => ({ path: '/agent/home', uid: null, uploads: '/agent/uploads' }))
const frames = readFrames(process.stdin)
const disconnected = new AbortController()
const { signal } = disconnected

async function send(bytes: Buffer): Promise<void> {
  if (!process.stdout.write(bytes)) await once(process.stdout, 'drain')
}

const answer = (answer: FilesAnswer) => send(headFrame(answer))

async function readFrame(): Promise<Frame | null> {
  const { value } = await frames.next().catch(() => ({ value: undefined }))
  if (!value) disconnected.abort(new Error('the control plane has disconnected'))
  return value ?? null
}

/** Reads one frame ahead, so that the end of the input aborts the current call. */
let following = readFrame()
function next(): Promise<Frame | null> {
  const frame = following
  following = readFrame()
  return frame
}

async function* content(): AsyncGenerator<Buffer, void> {
  for (;;) {
    const part = await next()
    if (!part) throw signal.reason
    if (part.kind === 'end') return
    yield part.payload
  }
}

const parse = ({ payload }: Frame) => JSON.parse(payload.toString())

async function sendFile(call: { path: string; maxBytes: number }): Promise<void> {
  const file = await files.read(call.path, call, signal)
  await answer({ result: file && { size: file.size, modifiedAt: file.modifiedAt.getTime() } })
  if (!file) return
  const wanted = await next()
  if (!wanted) return file.close()
  const range: FilesRange = parse(wanted)
  for await (const chunk of file.content(range)) await send(frame('data', chunk))
  await send(frame('end'))
}

function resultOf(call: Exclude<FilesCall, { call: 'read' }>): Promise<unknown> {
  switch (call.call) {
    case 'list':
      return files.list(call.path, call, signal)
    case 'stat':
      return files.stat(call.path, signal)
    case 'write':
      return files.write(call.path, Readable.from(content(), { objectMode: false }), call, signal)
    case 'mkdir':
      return files.mkdir(call.path, signal)
    case 'move':
      return files.move(call.from, call.to, call, signal)
    case 'remove':
      return files.remove(call.path, call, signal)
    case 'log':
      return rotateLog(logPath).then(() => readLog(logPath, call))
  }
}

function failureOf(error: unknown): FilesAnswer {
  if (error instanceof SandboxPathError) return { fault: error.fault, message: error.message }
  if (error instanceof SandboxCapacityError) return { full: error.message }
  return { failed: String(error) }
}

// Carries out calls one after another, until the input ends or a call fails: the next frames may be the rest of its
// content.
process.stdout.on('error', () => process.exit(1))
try {
  for (let head = await next(); head; head = await next()) {
    const call: FilesCall = parse(head)
    if (call.call === 'read') await sendFile(call)
    else await answer({ result: (await resultOf(call)) ?? null })
  }
} catch (error) {
  if (!signal.aborted) await answer(failureOf(error))
}
process.stdin.destroy()
