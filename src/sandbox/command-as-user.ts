export const setpriv = '/usr/bin/setpriv'

/**
 * The command that runs `argv` as the user of a sandbox, without further groups; `argv` itself if the sandbox runs as
 * the control plane's own user (null). Not the option `uid` of `spawn`: the sandbox's processes could stop the child
 * between its setuid and its exec, and `spawn` would block the event loop. Here they can stop only the child's own
 * program.
 */
export const commandAsUser = (
  uid: number | null,
  argv: readonly [string, ...string[]],
): readonly [string, ...string[]] =>
  uid === null ? argv : [setpriv, `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--', ...argv]
