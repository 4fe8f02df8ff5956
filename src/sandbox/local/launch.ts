import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { poll } from '#platform/poll.ts'
import { commandAsUser, setpriv } from '#sandbox/command-as-user.ts'
import type { ControlGroup } from './control-group.ts'
import type { SandboxFolder, SandboxRecord } from './folder.ts'
import { type Jail, makeJailFolders, roomEnvironment } from './jail.ts'
import { limitedCommand } from './limits.ts'
import { isAlive } from './processes.ts'
import { makeWaysOutFolder } from './way-out.ts'

const launcher = join(import.meta.dirname, 'launcher.sh')
const launcherPath = '/usr/sbin:/usr/bin:/sbin:/bin'
const timeoutMs = 10_000
const pollMs = 10
/** The launcher's exit code when another launcher, started at the same time, holds the folder. */
const heldByAnother = 75

/** The command that runs `command` with only the environment of the sandbox, which contains no secret. */
export function withEnvironment(
  { env }: Pick<SandboxRecord, 'env'>,
  command: readonly string[],
  options: readonly string[] = [],
): readonly [string, ...string[]] {
  // The second setpriv also prevents `env` from parsing a program path with a `=` as a variable.
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  return ['/usr/bin/env', '-i', ...options, ...variables, setpriv, '--no-new-privs', '--', ...command]
}

/**
 * The command that runs `command` as the sandbox's user, with the environment of the sandbox and without a way to gain
 * rights. The environment is set after root is dropped, so that no variable can affect a program of root's.
 */
export const commandInSandbox = (record: SandboxRecord, command: readonly string[]): readonly [string, ...string[]] =>
  commandAsUser(record.uid, withEnvironment(record, command))

/**
 * Starts a sandbox's gateway with a launcher, which stays beside it to record its exit code; both outlive this process.
 * Both are in the control group. Returns when the gateway's process exists, or has already ended. A kill of this
 * process half-way leaves no gateway, or one that is on record.
 */
export async function launchGateway(
  folder: SandboxFolder,
  record: SandboxRecord,
  { group, jail }: { group: ControlGroup | null; jail: Jail | null },
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted()
  if (jail) {
    await makeJailFolders(folder, record.uid)
    await makeWaysOutFolder(jail.waysOutFolder)
  }
  const program = jail
    ? ['', ...jail.gateway(record.uid, folder, withEnvironment(record, record.command))]
    : [folder.home, ...commandInSandbox(record, record.command)]
  await using log = await open(folder.log, 'a', 0o600)
  const limited = limitedCommand(record, group, ['/bin/sh', launcher, folder.path, ...program])
  const [shell, ...args] = limited.argv
  const child = spawn(shell, args, {
    cwd: jail?.waysOutFolder ?? '/',
    env: {
      PATH: launcherPath,
      ...jail?.environment,
      ...(jail && record.room && roomEnvironment(record.room)),
      ...limited.env,
    },
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  })
  await once(child, 'spawn')
  child.unref()
  async function hasStarted(): Promise<boolean> {
    const gateway = await folder.gateway()
    if (gateway && isAlive(gateway, record.uid)) return true
    if (child.exitCode === 0) return true // the gateway ran and ended
    const isOver = child.exitCode !== null || child.signalCode !== null
    if (isOver && child.exitCode !== heldByAnother) throw new Error('the gateway could not be launched')
    return false
  }
  if (!(await poll(hasStarted, { pauseMs: pollMs, timeoutMs, signal })))
    throw new Error(`the gateway had no process ${timeoutMs / 1000} s after its launch`)
}
