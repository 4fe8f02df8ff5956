import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants } from 'node:os'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecOptions, ExecResult } from '#sandbox/driver.ts'
import type { ControlGroup } from './control-group.ts'
import type { SandboxRecord } from './folder.ts'
import { commandInSandbox } from './launch.ts'
import { limitedCommand } from './limits.ts'
import { signalProcess } from './processes.ts'

const defaultMaxBytes = 1024 * 1024
/** A process that has left the group may keep the pipes open for ever. */
const pipesCloseMs = 1000

function collect(stream: Readable, maxBytes: number): () => string {
  const chunks: Buffer[] = []
  let room = maxBytes
  stream.on('data', (chunk: Buffer) => {
    const part = chunk.subarray(0, room)
    room -= part.length
    if (part.length > 0) chunks.push(part)
  })
  stream.on('error', () => {})
  return () => Buffer.concat(chunks).toString()
}

/**
 * The exit code, or null when the signal came first. The whole group is killed then, and when the program has ended.
 */
async function endOf(child: ChildProcess, signal: AbortSignal): Promise<number | null> {
  const killGroup = () => {
    if (child.pid !== undefined) signalProcess(-child.pid, 'SIGKILL')
  }
  const closed = once(child, 'close').catch(() => {})
  signal.addEventListener('abort', killGroup, { once: true })
  if (signal.aborted) killGroup()
  try {
    const [code, killedBy] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    const isLate = signal.aborted
    signal.removeEventListener('abort', killGroup)
    killGroup()
    await Promise.race([closed, sleep(pipesCloseMs, undefined, { ref: false })])
    if (isLate) return null
    return killedBy ? 128 + constants.signals[killedBy] : code
  } finally {
    signal.removeEventListener('abort', killGroup)
    for (const stream of [child.stdin, child.stdout, child.stderr]) stream?.destroy()
  }
}

/**
 * Runs a program as the sandbox's user, under its limits, in an open folder. The program has a process group of its own, which is killed
 * at the deadline, at the abort and when the program has ended. The exit code is 127 for a program that does not exist.
 */
export async function execBeside(
  record: SandboxRecord,
  group: ControlGroup | null,
  folder: { fd: number },
  argv: readonly string[],
  options: ExecOptions,
  signal: AbortSignal,
): Promise<ExecResult> {
  const { timeoutMs, stdin, maxBytes = defaultMaxBytes } = options
  const limited = limitedCommand(record, group, commandInSandbox(record, argv))
  const [program, ...rest] = limited.argv
  const child = spawn(program, rest, {
    cwd: `/proc/${process.pid}/fd/${folder.fd}`,
    env: limited.env,
    detached: true,
    stdio: 'pipe',
  })
  const stdout = collect(child.stdout, maxBytes)
  const stderr = collect(child.stderr, maxBytes)
  child.stdin.on('error', () => {}) // the program need not read it
  child.stdin.end(stdin)
  const exitCode = await endOf(child, AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]))
  signal.throwIfAborted()
  return { exitCode, stdout: stdout(), stderr: stderr() }
}
