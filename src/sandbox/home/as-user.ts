export const setpriv = '/usr/bin/setpriv'

/**
 * What to run so that `argv` runs as a sandbox's user, without further groups; `argv` itself when it is the control plane's
 * own, null. Not by `spawn`'s `uid`: between that setuid and the exec the sandbox's processes could stop the child, and
 * `spawn` waits for the exec with the whole event loop. Here it is a program of its own that they stop.
 */
export const asUser = (uid: number | null, argv: readonly [string, ...string[]]): readonly [string, ...string[]] =>
  uid === null ? argv : [setpriv, `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--', ...argv]
