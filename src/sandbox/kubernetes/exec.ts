import { posix } from 'node:path'
import { Duplex } from 'node:stream'
import type { V1Status } from '@kubernetes/client-node'
import type WebSocket from 'ws'
import { programs } from '#sandbox/container/layout.ts'
import { readOutput } from '#sandbox/container/output.ts'
import { type ExecOptions, type ExecResult, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { KubernetesClient } from './client.ts'
import { containerNames, withFolders } from './containers.ts'
import type { OnFrame } from './requests.ts'

const defaultMaxBytes = 1024 * 1024
/** The time that Kubernetes may need in addition to the program's own. */
const marginMs = 15_000
/** The exit code of a program that was killed, at its deadline or otherwise. */
const killedCode = 137

/** The channels of a WebSocket to a program. */
const channels = { stdin: 0, stdout: 1, stderr: 2, status: 3 } as const
const headerBytes = 8

/** A program in a pod. The socket takes its input, and gives its output in the format of readOutput. */
export interface Program {
  socket: Duplex
  /** The exit code; rejected when the connection ends without it. */
  ended: Promise<number>
}

/** Output in the format of dockerd, so that both drivers use the same reader. */
function framed(channel: number, bytes: Buffer): Buffer {
  const header = Buffer.alloc(headerBytes)
  header[0] = channel
  header.writeUInt32BE(bytes.length, 4)
  return Buffer.concat([header, bytes])
}

function exitCodeIn(bytes: Buffer): number {
  const { status, message, details } = JSON.parse(bytes.toString()) as V1Status
  if (status === 'Success') return 0
  const code = details?.causes?.find(({ reason }) => reason === 'ExitCode')?.message
  if (code === undefined) throw new Error(message ?? 'the program did not run')
  return Number(code)
}

type OpenSocket = (onFrame: OnFrame) => Promise<WebSocket>

/**
 * The stream over a WebSocket of the API. `take` returns the bytes of a frame to read, null for their end. Input goes
 * to the channel 0. The stream has no half-close: before version 1.30 the API has none either, and closes the whole
 * connection.
 */
export async function channelStream(
  open: OpenSocket,
  take: (channel: number, bytes: Buffer) => Buffer | null | undefined,
): Promise<Duplex> {
  let socket: WebSocket | undefined
  let isWhole = false
  const stream = new Duplex({
    read: () => socket?.resume(),
    write(chunk: Buffer, _encoding, done) {
      socket?.send(Buffer.concat([Buffer.from([channels.stdin]), chunk]), (error) => done(error))
    },
    destroy(error, done) {
      socket?.terminate()
      done(error)
    },
  })
  stream.on('error', () => {}) // the reader sees the end
  const end = () => {
    if (!isWhole) stream.push(null)
    isWhole = true
  }
  socket = await open((channel, bytes) => {
    if (isWhole || stream.destroyed || bytes.length === 0) return
    const taken = take(channel, bytes)
    if (taken === null) end()
    else if (taken && !stream.push(taken)) socket?.pause()
  })
  const close = () => {
    if (stream.readableLength === 0) return void stream.destroy()
    stream.once('end', () => stream.destroy())
    end()
  }
  socket.on('close', close)
  if (socket.readyState !== socket.OPEN) close()
  return stream
}

/** Starts a program in a pod. Throws a KubernetesRefusal when there is no such pod, or its container does not run. */
export async function startProgram(
  client: KubernetesClient,
  pod: string,
  argv: readonly string[],
  signal: AbortSignal,
): Promise<Program> {
  const query = new URLSearchParams({ container: containerNames.agent, stdin: 'true', stdout: 'true', stderr: 'true' })
  for (const part of argv) query.append('command', part)
  const ended = Promise.withResolvers<number>()
  ended.promise.catch(() => {}) // its consumer handles the rejection
  const socket = await channelStream(
    (onFrame) => client.open(`core/pods/${pod}/exec?${query}`, onFrame, signal),
    (channel, bytes) => {
      if (channel === channels.stdout || channel === channels.stderr) return framed(channel, bytes)
      if (channel !== channels.status) return undefined
      try {
        ended.resolve(exitCodeIn(bytes))
      } catch (error) {
        ended.reject(error)
      }
      return null
    },
  )
  socket.once('close', () => ended.reject(new Error('the connection to the program has ended')))
  return { socket, ended: ended.promise }
}

/** Runs a program by `exec.sh` with a folder, a deadline and a number of input bytes. */
const runIt = `cd "$1" || exit 126
bytes=$2
shift 2
if [ "$bytes" -eq 0 ]; then exec "$@" </dev/null; fi
head -c "$bytes" | "$@"`

function folderIn(home: string, cwd: string): string {
  const folder = posix.resolve(home, cwd)
  if (folder !== home && !folder.startsWith(`${home}/`))
    throw new SandboxPathError('outside', `${JSON.stringify(cwd)} leads out of the folder`)
  return folder
}

/** Runs a program in the pod of a gateway, as SandboxDriver.exec does. After an abort it runs on until its deadline. */
export function execIn(
  client: KubernetesClient,
  pod: string,
  home: string,
  argv: readonly string[],
  { timeoutMs, cwd = '', stdin = Buffer.alloc(0), maxBytes = defaultMaxBytes }: ExecOptions,
  signal: AbortSignal,
): Promise<ExecResult> {
  const folder = folderIn(home, cwd)
  const command = [
    ...[...withFolders, '/bin/sh', '-c', runIt, 'sh', folder, String(stdin.length)],
    ...[`${programs}/exec.sh`, String(timeoutMs / 1000), ...argv],
  ]
  return client.call(
    signal,
    async (limited) => {
      const startedAt = performance.now()
      const { socket, ended } = await startProgram(client, pod, command, limited)
      const onAbort = () => socket.destroy()
      limited.addEventListener('abort', onAbort, { once: true })
      try {
        if (stdin.length > 0) socket.write(stdin)
        const chunks = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
        const room = { stdout: maxBytes, stderr: maxBytes }
        const reading = (async () => {
          for await (const { stream, bytes } of readOutput(socket)) {
            const part = bytes.subarray(0, room[stream])
            room[stream] -= part.length
            if (part.length > 0) chunks[stream].push(part)
          }
        })()
        await reading.catch(() => {}) // the connection has ended: `ended` reports whether the program has too
        const code = await ended
        const isLate = code === killedCode && performance.now() - startedAt >= timeoutMs
        const textOf = (parts: Buffer[]) => Buffer.concat(parts).toString()
        return { exitCode: isLate ? null : code, stdout: textOf(chunks.stdout), stderr: textOf(chunks.stderr) }
      } finally {
        limited.removeEventListener('abort', onAbort)
        socket.destroy()
      }
    },
    { deadlineMs: timeoutMs + marginMs },
  )
}

/** The error for a sandbox whose pod does not run. */
export const doesNotRun = () => new SandboxUnavailableError(new Error('the sandbox does not run'))
