import { posix } from 'node:path'
import type { Duplex } from 'node:stream'
import type Docker from 'dockerode'
import { type ExecOptions, type ExecResult, SandboxPathError, type SandboxPaths } from '#sandbox/driver.ts'
import { pause } from '#sandbox/pause.ts'
import type { DockerClient } from './engine.ts'
import { readOutput } from './output.ts'
import { programs } from './profile.ts'

const defaultMaxBytes = 1024 * 1024
/** What dockerd may need besides the program itself. */
const marginMs = 15_000
const pollMs = 20
/** The exit code of a program that its deadline, or anybody else, has killed. */
const killedCode = 137

/** A program that was started in a container, and the stream to it: its input, and its output as of readOutput. */
export interface Program {
  exec: Docker.Exec
  socket: Duplex
}

/** Starts a program in a container; null when there is no such container, or it does not run. */
export const startProgram = (
  engine: DockerClient,
  container: string,
  options: Docker.ExecCreateOptions,
  signal: AbortSignal,
): Promise<Program | null> =>
  engine.callUnless([404, 409], signal, async (docker, abortSignal) => {
    const exec = await docker.getContainer(container).exec({
      AttachStdin: true,
      AttachStdout: true,
      AttachStderr: true,
      ...options,
      abortSignal,
    })
    // Without the signal: it would end the stream much later too.
    const socket = await exec.start({ hijack: true, stdin: true })
    socket.on('error', () => {}) // whoever reads it learns of its end
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
  for (;;) {
    const { Running, ExitCode } = await exec.inspect({ abortSignal: signal })
    if (!Running && ExitCode !== null) return ExitCode
    await pause(pollMs, signal)
  }
}

/**
 * Runs a program in a container beside the gateway, as exec of SandboxDriver; null when the container does not run. One
 * whose call was aborted runs on until its deadline.
 */
export async function execBeside(
  engine: DockerClient,
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
  const program = await startProgram(engine, container, options, signal)
  if (!program) return null
  const { socket } = program
  try {
    return await engine.call(
      signal,
      async (_docker, abortSignal) => {
        abortSignal.addEventListener('abort', () => socket.destroy(), { once: true })
        socket.end(stdin)
        const kept = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
        const room = { stdout: maxBytes, stderr: maxBytes }
        for await (const { stream, bytes } of readOutput(socket)) {
          const part = bytes.subarray(0, room[stream])
          room[stream] -= part.length
          if (part.length > 0) kept[stream].push(part)
        }
        const code = await exitCodeOf(program, abortSignal)
        const isLate = code === killedCode && performance.now() - startedAt >= timeoutMs
        const [stdout, stderr] = [kept.stdout, kept.stderr].map((chunks) => Buffer.concat(chunks).toString())
        return { exitCode: isLate ? null : code, stdout: stdout ?? '', stderr: stderr ?? '' }
      },
      { deadlineMs: timeoutMs + marginMs },
    )
  } finally {
    socket.destroy()
  }
}
