import { spawn } from 'node:child_process'
import { open } from 'node:fs/promises'
import { join } from 'node:path'

/** In the sandbox's control folder, which its user cannot write. */
export const launcherFiles = { log: 'gateway.log', process: 'process', exit: 'exit' } as const

/** Exit code of the launcher when another one holds the sandbox. */
const alreadyHeld = 75

/**
 * Becomes the gateway, after it wrote down which process that is: no crash of Chowder leaves one that nobody knows.
 * Arguments: the control folder, then the command.
 */
const inner = `
dir=$1; shift
read -r stat < /proc/self/stat
read -r boot < /proc/sys/kernel/random/boot_id
printf '%s\\n%s\\n' "$stat" "$boot" > "$dir/process.new"
mv "$dir/process.new" "$dir/process"
exec "$@"
`

/**
 * Stays beside the gateway to write down how it ended, also while no Chowder runs. Holds a lock, so that of two starts
 * at once one is refused. Arguments: the inner script, the control folder, then the command.
 */
const outer = `
trap '' HUP
inner=$1; dir=$2; shift 2
exec 9> "$dir/lock"
flock -n 9 || exit ${alreadyHeld}
rm -f "$dir/exit" "$dir/process"
/bin/sh -c "$inner" sh "$dir" "$@" 9>&-
printf '%s\\n' $? > "$dir/exit.new"
mv "$dir/exit.new" "$dir/exit"
`

/** Puts a command under a user of its own, for good; with null it stays under Chowder's. */
export const asUser = (uid: number | null, command: readonly string[]): string[] =>
  uid === null
    ? [...command]
    : ['/usr/bin/setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--no-new-privs', '--', ...command]

export interface Launch {
  control: string
  home: string
  uid: number | null
  command: readonly string[]
  env: Record<string, string>
}

/**
 * Starts a gateway in a session of its own, with its output appended to the control folder's log. It outlives this
 * process. Resolves once the launcher exists; rejects when it could not be made.
 */
export async function launch({ control, home, uid, command, env }: Launch): Promise<void> {
  const log = await open(join(control, launcherFiles.log), 'a', 0o600)
  try {
    const child = spawn('/bin/sh', ['-c', `umask 077\n${outer}`, 'sh', inner, control, ...asUser(uid, command)], {
      cwd: home,
      env,
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
    })
    child.unref()
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve)
      child.once('error', reject)
    })
  } finally {
    await log.close()
  }
}
