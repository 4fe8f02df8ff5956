import { poll } from '#platform/poll.ts'
import type { SandboxFolder } from './folder.ts'
import { isAlive, type Owner, type ProcessId } from './processes.ts'

const pollMs = 10
/** The launcher needs a moment to record the gateway's exit code. */
const exitRecordMs = 2000

/** The gateway on record, if it is alive, whichever process of the control plane has started it. */
export async function liveGateway(folder: SandboxFolder, uid: number | null): Promise<ProcessId | null> {
  const gateway = await folder.gateway()
  return gateway && isAlive(gateway, uid) ? gateway : null
}

/** Waits until the launcher of the last gateway has ended, at most 2 s. */
export async function launcherEnded(folder: SandboxFolder, signal: AbortSignal): Promise<void> {
  const launcher = await folder.supervisor()
  if (!launcher) return
  await poll(() => !isAlive(launcher, null), { pauseMs: pollMs, timeoutMs: exitRecordMs, signal })
}

/** The owner of a sandbox's processes. */
export const ownerOf = async (folder: SandboxFolder, uid: number | null): Promise<Owner> => ({
  uid,
  home: folder.home,
  gateway: await folder.gateway(),
  init: await folder.init(),
})
