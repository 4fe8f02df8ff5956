/**
 * `link`: the path leads to a symbolic link, or through one. `not_directory`: a part of it must be a folder and is
 * none. `special`: it is neither file nor folder. `forbidden`: its permissions forbid the call. `locked`: the tenant
 * holds a lease on the file. `changed`: the file became shorter while it was read.
 */
export type PathFault =
  | 'outside'
  | 'missing'
  | 'exists'
  | 'directory'
  | 'not_empty'
  | 'too_large'
  | 'changed'
  | 'link'
  | 'not_directory'
  | 'into_itself'
  | 'special'
  | 'name_too_long'
  | 'forbidden'
  | 'locked'

/** A path that leads out of the sandbox's folder, or that the call cannot use. The message is safe to show. */
export class SandboxPathError extends Error {
  override name = 'SandboxPathError'
  readonly fault: PathFault
  constructor(fault: PathFault, message: string, options?: ErrorOptions) {
    super(message, options)
    this.fault = fault
  }
}

/** There is no sandbox with that id: it was not created yet, or was deleted. */
export class SandboxAbsentError extends Error {
  override name = 'SandboxAbsentError'
}

/** The platform has no room for the call. An immediate retry is useless. */
export class SandboxCapacityError extends Error {
  override name = 'SandboxCapacityError'
}

/**
 * The platform cannot carry out the call. The message has the reason and the remedy; the owner of the agent reads it.
 */
export class SandboxProblemError extends Error {
  override name = 'SandboxProblemError'
}
