import { AppError } from '#errors/app-error.ts'
import type { ErrorCode } from '#errors/codes.ts'
import { texts } from '#errors/texts.ts'
import { toCallerError } from '#instances/gateway/errors.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { workspacePath } from '#openclaw/inside/launch.ts'
import {
  type PathFault,
  SandboxAbsentError,
  SandboxCapacityError,
  type SandboxFiles,
  SandboxPathError,
} from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'
import { withRoom } from './room.ts'

/** The path of a workspace's file in the sandbox. */
export const inWorkspace = (path: string): string => (path === '.' ? workspacePath : `${workspacePath}/${path}`)

const pathErrors: Record<PathFault, (deps: FileDeps) => [ErrorCode, string]> = {
  outside: () => ['invalid_path', texts.pathUpwards],
  link: () => ['invalid_path', texts.pathIsLink],
  not_directory: () => ['invalid_path', texts.pathIsNoFolder],
  into_itself: () => ['invalid_path', texts.moveIntoItself],
  special: () => ['invalid_path', texts.pathIsSpecial],
  name_too_long: () => ['invalid_path', texts.nameTooLong],
  forbidden: () => ['permission_denied', texts.permissionDenied],
  locked: () => ['resource_busy', texts.fileLocked],
  directory: () => ['invalid_path', texts.pathIsFolder],
  missing: () => ['file_not_found', texts.noSuchFile],
  exists: () => ['destination_exists', texts.destinationExists],
  not_empty: () => ['directory_not_empty', texts.folderNotEmpty],
  changed: () => ['resource_busy', texts.fileChanges],
  too_large: ({ filesMaxBytes }) => ['too_large', texts.fileTooLarge(filesMaxBytes)],
}

/**
 * Calls `use` with the files of an organization's instance, whether it runs or not. Throws not_found for a missing,
 * malformed or foreign id alike; conflict before the instance has a sandbox, and when it is terminated;
 * gateway_unreachable when its sandbox is missing; gateway_timeout when the signal of the call timed out; no_space for
 * a full disk; what `withRoom` throws; and an error for the caller about an unusable path.
 */
export async function withFiles<T>(
  deps: FileDeps,
  organizationId: string,
  instanceId: string,
  use: (files: SandboxFiles) => Promise<T>,
): Promise<T> {
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const status = publicStatus(instance)
  if (status === 'terminated') throw new AppError('instance_terminated', texts.filesDeleted)
  try {
    return await withRoom(deps, instance, use)
  } catch (cause) {
    if (cause instanceof SandboxPathError) {
      const [code, text] = pathErrors[cause.fault](deps)
      throw new AppError(code, text, { cause })
    }
    if (cause instanceof SandboxCapacityError) throw new AppError('no_space', texts.diskFull, { cause })
    if (cause instanceof DOMException && cause.name === 'TimeoutError') {
      throw new AppError('gateway_timeout', texts.filesTooSlow, { cause })
    }
    if (cause instanceof SandboxAbsentError && instance.sandboxId === null) {
      throw new AppError('instance_not_running', texts.noFilesYet(status), { cause })
    }
    throw toCallerError(cause)
  }
}
