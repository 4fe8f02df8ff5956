import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { asUser, setpriv } from '#sandbox/home/as-user.ts'
import { pause } from '#sandbox/pause.ts'
import type { SandboxFolder, SandboxRecord } from './folder.ts'
import { isAlive } from './processes.ts'

const launcher = join(import.meta.dirname, 'launcher.sh')
const launcherPath = '/usr/sbin:/usr/bin:/sbin:/bin'
const deadlineMs = 10_000
const pollMs = 10
/** The launcher's exit code when another one, started at the same time, holds the folder. */
const heldByAnother = 75

/**
 * What to run so that `command` runs as the sandbox's user, with its environment, which holds no secrets, and without a
 * way to more rights.
 */
export function inside({ uid, env }: SandboxRecord, command: readonly string[]): readonly [string, ...string[]] {
  // The environment is set after root is dropped, so that no variable can act on a program of root's. This setpriv also
  // stands between `env` and a program whose path has a `=` in it.
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`)
  return asUser(uid, ['/usr/bin/env', '-i', ...variables, setpriv, '--no-new-privs', '--', ...command])
}

/**
 * Starts a sandbox's gateway by a launcher that lives on beside it to record its exit code, both independent of this
 * process. Returns once the gateway's process exists, or has already ended. A kill of this process half-way leaves no
 * gateway, or one that is on record.
 */
export async function launchGateway(folder: SandboxFolder, record: SandboxRecord, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  const program = inside(record, record.command)
  await using log = await open(folder.log, 'a', 0o600)
  const child = spawn('/bin/sh', [launcher, folder.path, folder.home, ...program], {
    cwd: '/',
    env: { PATH: launcherPath },
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
  })
  await once(child, 'spawn')
  child.unref()
  for (const deadline = performance.now() + deadlineMs; performance.now() < deadline; ) {
    const gateway = await folder.gateway()
    if (gateway && (await isAlive(gateway, record.uid))) return
    if (child.exitCode === 0) return // the gateway ran and ended
    const isOver = child.exitCode !== null || child.signalCode !== null
    if (isOver && child.exitCode !== heldByAnother) throw new Error('the gateway could not be launched')
    await pause(pollMs, signal)
  }
  throw new Error(`no gateway process ${deadlineMs / 1000} s after its launch`)
}
