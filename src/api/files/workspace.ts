import type { Db } from '#database/client.ts'
import { toCallerError } from '#instances/gateway/errors.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { workspacePath } from '#openclaw/launch.ts'
import { AppError, type ErrorKind } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import {
  type PathFault,
  SandboxAbsentError,
  type SandboxAccess,
  SandboxCapacityError,
  type SandboxFiles,
  SandboxPathError,
} from '#sandbox/driver.ts'

export interface WorkspaceDeps {
  db: Db
  sandboxes: SandboxAccess
  /** The largest file that may be uploaded, in bytes. */
  filesMaxBytes: number
}

/** A path of the workspace as the sandbox's files know it. */
export const inWorkspace = (path: string): string => (path === '.' ? workspacePath : `${workspacePath}/${path}`)

const answers: Record<PathFault, (deps: WorkspaceDeps) => [ErrorKind, string]> = {
  outside: () => ['invalid', texts.pathUpwards],
  unusable: () => ['invalid', texts.pathUnusable],
  directory: () => ['invalid', texts.pathIsFolder],
  missing: () => ['not_found', texts.noSuchFile],
  exists: () => ['conflict', texts.destinationExists],
  not_empty: () => ['conflict', texts.folderNotEmpty],
  changed: () => ['conflict', texts.fileChanges],
  too_large: ({ filesMaxBytes }) => ['too_large', texts.fileTooLarge(filesMaxBytes)],
}

/**
 * Runs a call on the files of an organization's instance, whether that runs or not. Throws not_found for a missing,
 * malformed or foreign id alike, conflict while there is no sandbox yet and when it was deleted, gateway_unreachable
 * when it is gone, gateway_timeout when the call's signal timed out, and what the sandbox says of a path or of a full disk in words for the client.
 */
export async function withFiles<T>(
  deps: WorkspaceDeps,
  organizationId: string,
  id: string,
  call: (files: SandboxFiles) => Promise<T>,
): Promise<T> {
  const row = await getInstance(deps.db, organizationId, id)
  const status = publicStatus(row)
  if (status === 'terminated') throw new AppError('conflict', texts.filesGone)
  try {
    return await call(deps.sandboxes.files(row.id))
  } catch (cause) {
    if (cause instanceof SandboxPathError) {
      const [kind, text] = answers[cause.fault](deps)
      throw new AppError(kind, text, { cause })
    }
    if (cause instanceof SandboxCapacityError) throw new AppError('no_space', texts.diskFull, { cause })
    if (cause instanceof DOMException && cause.name === 'TimeoutError') {
      throw new AppError('gateway_timeout', texts.filesTooSlow, { cause })
    }
    if (cause instanceof SandboxAbsentError && row.sandboxId === null) {
      throw new AppError('conflict', texts.noFilesYet(status), { cause })
    }
    throw toCallerError(cause)
  }
}
