import { spawn } from 'node:child_process'

const maxErrorBytes = 4096
/** On Linux the program ends with this process, even if this one is killed. */
const bound = process.platform === 'linux' ? ['/usr/bin/setpriv', '--pdeathsig', 'KILL', '--'] : []

export interface RunOptions {
  /** The whole environment; by default this process's environment. */
  env?: Record<string, string>
  cwd?: string
  /** A match in the error output kills the program and becomes the error's message. */
  fatal?: RegExp
  /** Sends SIGTERM to the program when it is aborted. */
  stop?: AbortSignal
}

/**
 * Runs a program until it exits. Throws an Error with the end of its error output when it fails. An abort kills the
 * program and its children, and throws the signal's reason. A kill of this process ends the program, not its children.
 */
export async function runProgram(
  command: string,
  args: readonly string[],
  signal: AbortSignal,
  { env, cwd, fatal, stop }: RunOptions = {},
): Promise<void> {
  signal.throwIfAborted()
  const { promise: ended, resolve, reject } = Promise.withResolvers<number | null>()
  const [program = command, ...others] = [...bound, command, ...args]
  const child = spawn(program, others, {
    stdio: ['ignore', 'ignore', 'pipe'],
    detached: true,
    ...(env && { env }),
    ...(cwd && { cwd }),
  })
  const killAll = () => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    } catch {} // all of its processes have ended
  }
  const terminate = () => child.kill('SIGTERM')
  let errors = ''
  let failure: string | undefined
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    errors = (errors + text).slice(-maxErrorBytes)
    failure ??= fatal?.exec(errors)?.[0]
    if (failure !== undefined) killAll()
  })
  child.once('error', reject).once('close', resolve)
  signal.addEventListener('abort', killAll, { once: true })
  stop?.addEventListener('abort', terminate, { once: true })
  try {
    const code = await ended
    signal.throwIfAborted()
    if (failure !== undefined) throw new Error(failure)
    if (code !== 0) throw new Error(errors.trim() || `${command} ended with code ${code}`)
  } finally {
    signal.removeEventListener('abort', killAll)
    stop?.removeEventListener('abort', terminate)
  }
}
