/**
 * `unusable`: the path leads through a link or a file, or to something that is neither file nor folder. `changed`: the
 * file became shorter while it was read.
 */
export type PathFault =
  | 'outside'
  | 'missing'
  | 'exists'
  | 'directory'
  | 'not_empty'
  | 'too_large'
  | 'changed'
  | 'unusable'

/** A path that leads out of the sandbox's folder, or that the call cannot use. The message is safe to show. */
export class SandboxPathError extends Error {
  override name = 'SandboxPathError'
  readonly fault: PathFault
  constructor(fault: PathFault, message: string, options?: ErrorOptions) {
    super(message, options)
    this.fault = fault
  }
}

/** There is no sandbox of that id: it was not made yet, or was deleted. */
export class SandboxAbsentError extends Error {
  override name = 'SandboxAbsentError'
}

/** The platform has no room left for the call. An immediate retry is useless. */
export class SandboxCapacityError extends Error {
  override name = 'SandboxCapacityError'
}
