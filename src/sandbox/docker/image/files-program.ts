import { once } from 'node:events'
import { Readable } from 'node:stream'
import { SandboxCapacityError, SandboxPathError } from '#sandbox/errors.ts'
import { filesIn } from '#sandbox/home/files.ts'
import { readLog, rotateLog } from '#sandbox/local/log-file.ts'
import { type Frame, frame, headFrame, readFrames } from './frames.ts'

/**
 * A call: a method of SandboxFiles with its arguments, or a look at the log of the gateway where that is in the volume.
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

/** The answer to a call. The caller answers `opened` with a FilesRange; frames with that content follow. */
export type FilesAnswer =
  | { result: unknown }
  | { opened: { size: number; modifiedAt: number } | null }
  | { fault: SandboxPathError['fault']; message: string }
  | { full: string }
  | { failed: string }

/** The wanted part of an opened file; null closes the file. */
export type FilesRange = { start: number; end: number } | null

const logPath = '/agent/gateway.log'
const files = filesIn(async () => ({ path: '/agent/home', uid: null, uploads: '/agent/uploads' }))
const frames = readFrames(process.stdin)
const disconnected = new AbortController()
const { signal } = disconnected

async function send(bytes: Buffer): Promise<void> {
  if (!process.stdout.write(bytes)) await once(process.stdout, 'drain')
}

/** The next frame. The end of the input aborts the call that is under way. */
async function next(): Promise<Frame | null> {
  const { value } = await frames.next().catch(() => ({ value: undefined }))
  if (!value) disconnected.abort(new Error('the control plane has disconnected'))
  return value ?? null
}

async function* content(): AsyncGenerator<Buffer, void> {
  for (;;) {
    const part = await next()
    if (!part) throw signal.reason
    if (part.kind === 'end') return
    yield part.payload
  }
}

const head = ({ payload }: Frame) => JSON.parse(payload.toString())

/** Carries out a call; returns the frame after it. */
async function answer(call: FilesCall): Promise<Frame | null> {
  if (call.call === 'write') {
    const { path, call: _, ...options } = call
    await files.write(path, Readable.from(content(), { objectMode: false }), options, signal)
    await send(headFrame({ result: null } satisfies FilesAnswer))
    return next()
  }
  const following = next()
  if (call.call !== 'read') {
    await send(headFrame({ result: await resultOf(call) } satisfies FilesAnswer))
    return following
  }
  const file = await files.read(call.path, call, signal)
  const opened = file && { size: file.size, modifiedAt: file.modifiedAt.getTime() }
  await send(headFrame({ opened } satisfies FilesAnswer))
  if (!file) return following
  const wanted = await following
  const range: FilesRange = wanted && head(wanted)
  const after = next()
  if (range) {
    for await (const chunk of file.content(range)) await send(frame('data', chunk))
    await send(frame('end'))
  } else {
    await file.close()
  }
  return after
}

function resultOf(call: Exclude<FilesCall, { call: 'read' | 'write' }>): Promise<unknown> {
  switch (call.call) {
    case 'list':
      return files.list(call.path, call, signal)
    case 'stat':
      return files.stat(call.path, signal)
    case 'mkdir':
      return files.mkdir(call.path, signal)
    case 'move':
      return files.move(call.from, call.to, call, signal)
    case 'remove':
      return files.remove(call.path, call, signal)
    case 'log':
      return logPage(call)
  }
}

async function logPage(options: { lines: number; after?: string | undefined }): Promise<unknown> {
  await rotateLog(logPath)
  return readLog(logPath, options)
}

function failureOf(error: unknown): FilesAnswer {
  if (error instanceof SandboxPathError) return { fault: error.fault, message: error.message }
  if (error instanceof SandboxCapacityError) return { full: error.message }
  return { failed: String(error) }
}

// One call after another, until the input ends, or a call fails: the next frames may be the rest of its content.
process.stdout.on('error', () => process.exit(1))
try {
  for (let call = await next(); call; ) call = await answer(head(call))
} catch (error) {
  if (!signal.aborted) await send(headFrame(failureOf(error)))
}
process.stdin.destroy()
