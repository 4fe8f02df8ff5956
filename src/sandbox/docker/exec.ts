import { posix } from 'node:path'
import type { Duplex } from 'node:stream'
import type Docker from 'dockerode'
import { poll } from '#platform/poll.ts'
import { programs } from '#sandbox/container/layout.ts'
import { readOutput } from '#sandbox/container/output.ts'
import { type ExecOptions, type ExecResult, SandboxPathError, type SandboxPaths } from '#sandbox/driver.ts'
import type { DockerClient } from './docker-client.ts'

const defaultMaxBytes = 1024 * 1024
/** The time that dockerd may need in addition to the program's own. */
const marginMs = 15_000
const pollMs = 20
/** The exit code of a program that was killed, at its deadline or otherwise. */
const killedCode = 137

/** A program in a container. The socket takes its input, and gives its output in the format of readOutput. */
export interface Program {
  exec: Docker.Exec
  socket: Duplex
}

/** Starts a program in a container; returns null when there is no such container, or it does not run. */
export const startProgram = (
  client: DockerClient,
  container: string,
  options: Docker.ExecCreateOptions,
  signal: AbortSignal,
): Promise<Program | null> =>
  client.callUnless([404, 409], signal, async (docker, abortSignal) => {
    const exec = await docker.getContainer(container).exec({
      AttachStdin: true,
      AttachStdout: true,
      AttachStderr: true,
      ...options,
      abortSignal,
    })
    // Without the signal, whose abort would end the stream at any later time.
    const socket = await exec.start({ hijack: true, stdin: true })
    socket.on('error', () => {}) // the reader sees the end
    if (abortSignal.aborted) socket.destroy()
    return { exec, socket }
  })

function folderIn(home: string, cwd: string): string {
  const folder = posix.resolve(home, cwd)
  if (folder !== home && !folder.startsWith(`${home}/`))
    throw new SandboxPathError('outside', `${JSON.stringify(cwd)} leads out of the folder`)
  return folder
}

async function exitCodeOf({ exec }: Program, signal: AbortSignal): Promise<number> {
  async function findEnd() {
    const { Running, ExitCode } = await exec.inspect({ abortSignal: signal })
    return !Running && ExitCode !== null && { code: ExitCode }
  }
  const end = await poll(findEnd, { pauseMs: pollMs, timeoutMs: marginMs, signal })
  if (!end) throw new Error('dockerd does not report the exit code of a program')
  return end.code
}

/**
 * Runs a program in a container beside the gateway, as SandboxDriver.exec does; returns null when the container does
 * not run. After an abort the program runs on until its deadline.
 */
export async function execBeside(
  client: DockerClient,
  container: string,
  paths: SandboxPaths,
  argv: readonly string[],
  { timeoutMs, cwd = '', stdin, maxBytes = defaultMaxBytes }: ExecOptions,
  signal: AbortSignal,
): Promise<ExecResult | null> {
  const startedAt = performance.now()
  const options: Docker.ExecCreateOptions = {
    Cmd: [`${programs}/exec.sh`, String(timeoutMs / 1000), ...argv],
    WorkingDir: folderIn(paths.home, cwd),
  }
  const program = await startProgram(client, container, options, signal)
  if (!program) return null
  const { socket } = program
  try {
    return await client.call(
      signal,
      async (_docker, abortSignal) => {
        abortSignal.addEventListener('abort', () => socket.destroy(), { once: true })
        socket.end(stdin)
        const chunks = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
        const room = { stdout: maxBytes, stderr: maxBytes }
        for await (const { stream, bytes } of readOutput(socket)) {
          const part = bytes.subarray(0, room[stream])
          room[stream] -= part.length
          if (part.length > 0) chunks[stream].push(part)
        }
        const code = await exitCodeOf(program, abortSignal)
        const isLate = code === killedCode && performance.now() - startedAt >= timeoutMs
        const textOf = (parts: Buffer[]) => Buffer.concat(parts).toString()
        return { exitCode: isLate ? null : code, stdout: textOf(chunks.stdout), stderr: textOf(chunks.stderr) }
      },
      { deadlineMs: timeoutMs + marginMs },
    )
  } finally {
    socket.destroy()
  }
}
