import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants } from 'node:os'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecOptions, ExecResult } from '#sandbox/driver.ts'
import type { ControlGroup } from './control-group.ts'
import type { SandboxFolder, SandboxRecord } from './folder.ts'
import { type Jail, makeJailFolders } from './jail.ts'
import { commandInSandbox, withEnvironment } from './launch.ts'
import { type LimitedCommand, limitedCommand, processesOfJail, withProcesses } from './limits.ts'
import { isAlive, signalProcess } from './processes.ts'

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

/** The exit code, or null if the signal came first. Kills the whole group in both cases. */
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
 * Runs a command under the limits of its sandbox. The program has its own process group, which is killed at the
 * deadline, at the abort and after the program's end. The exit code is 127 for a missing program.
 */
async function execLimited(
  { argv: [program, ...args], env }: LimitedCommand,
  cwd: string,
  options: ExecOptions,
  signal: AbortSignal,
): Promise<ExecResult> {
  const { timeoutMs, stdin, maxBytes = defaultMaxBytes } = options
  const child = spawn(program, args, { cwd, env, detached: true, stdio: 'pipe' })
  const stdout = collect(child.stdout, maxBytes)
  const stderr = collect(child.stderr, maxBytes)
  child.stdin.on('error', () => {}) // the program need not read it
  child.stdin.end(stdin)
  const exitCode = await endOf(child, AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]))
  signal.throwIfAborted()
  return { exitCode, stdout: stdout(), stderr: stderr() }
}

/** Runs a program as the sandbox's user, under its limits, in an open folder, with execLimited. */
export function execBeside(
  record: SandboxRecord,
  group: ControlGroup | null,
  folder: { fd: number },
  argv: readonly string[],
  options: ExecOptions,
  signal: AbortSignal,
): Promise<ExecResult> {
  const command = limitedCommand(record, group, commandInSandbox(record, argv))
  return execLimited(command, `/proc/${process.pid}/fd/${folder.fd}`, options, signal)
}

/**
 * Runs a program in the sandbox's jail, or in a separate one while the sandbox is stopped, in a folder below its home,
 * with execLimited.
 */
export async function execInJail(
  jail: Jail,
  folder: SandboxFolder,
  record: SandboxRecord,
  argv: readonly string[],
  options: ExecOptions & { cwd: string },
  signal: AbortSignal,
): Promise<ExecResult> {
  const cwd = join(folder.home, options.cwd)
  const init = await folder.init()
  const isRunning = init !== null && isAlive(init, record.uid)
  if (!isRunning) await makeJailFolders(folder, record.uid)
  const group = await folder.controlGroup()
  const pids = processesOfJail(record, group)
  const command = isRunning
    ? jail.enter(record.uid, init, cwd, withEnvironment(record, argv))
    : jail.alone(record.uid, folder, withEnvironment(record, argv, [`--chdir=${cwd}`]))
  const limited = limitedCommand(record, group, isRunning && pids !== null ? withProcesses(pids, command) : command)
  return execLimited({ ...limited, env: { ...jail.environment, ...limited.env } }, '/', options, signal)
}
