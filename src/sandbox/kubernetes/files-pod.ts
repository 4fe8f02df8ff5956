import type { V1Pod } from '@kubernetes/client-node'
import { poll } from '#platform/poll.ts'
import { createFilesSession, type FilesSession } from '#sandbox/container/files-session.ts'
import { node, nodeFlags, programs } from '#sandbox/container/layout.ts'
import { SandboxProblemError, SandboxUnavailableError } from '#sandbox/driver.ts'
import type { KubernetesClient } from './client.ts'
import { withFolders } from './containers.ts'
import { startProgram } from './exec.ts'
import { filesPod, filesPodName, podName } from './objects.ts'
import { findProblem } from './pods.ts'
import { KubernetesRefusal } from './requests.ts'
import type { KubernetesSetup } from './settings.ts'
import { hasEnded, isRunning, takesPrograms } from './states.ts'

/** For a pod of files: its volume may have to be attached to a node. */
const timeoutMs = 50_000
const retryMs = 300
/** The statuses of the API for a pod that does not exist, or whose container does not run. */
const notRunning = [400, 404, 500]

export interface FilesPodOptions {
  client: KubernetesClient
  setup: KubernetesSetup
  /** The image and the user of a sandbox, and whether its agent should run. Throws SandboxAbsentError when there is none. */
  find(id: string, signal: AbortSignal): Promise<{ image: string; uid: number; isWanted: boolean }>
}

const program = [...withFolders, node, ...nodeFlags, `${programs}/files-program.js`]

/**
 * Starts the files program of a sandbox. While the agent's pod exists, even after its gateway has ended by itself, the
 * program runs there, because many volumes can be on one node only; otherwise in a pod that is created for it. Throws
 * SandboxProblemError or SandboxUnavailableError when that does not start within 50 s.
 */
export async function openFilesSession(
  id: string,
  { client, setup, find }: FilesPodOptions,
  signal: AbortSignal,
): Promise<FilesSession> {
  const name = filesPodName(id)
  /** The pod whose start is waited for. */
  let awaited: { pod: V1Pod | null; name: string } = { pod: null, name }

  /** null when the pod does not run or no longer runs. */
  const startIn = async (pod: string): Promise<FilesSession | null> => {
    try {
      return await client.call(signal, async (limited) =>
        createFilesSession((await startProgram(client, pod, program, limited)).socket),
      )
    } catch (error) {
      const cause = error instanceof SandboxUnavailableError ? error.cause : null
      if (cause instanceof KubernetesRefusal && notRunning.includes(cause.code)) return null
      throw error
    }
  }

  async function attempt(): Promise<FilesSession | null> {
    const { image, uid, isWanted } = await find(id, signal)
    const agent = await client.find<V1Pod>(`core/pods/${podName(id)}`, signal)
    if (agent && takesPrograms(agent)) return startIn(podName(id))
    if (isWanted || agent) {
      awaited = { pod: agent, name: podName(id) } // it starts, or ends
      return null
    }
    const pod = await client.find<V1Pod>(`core/pods/${name}`, signal)
    // A pod whose image could not be pulled would keep waiting after the setting was corrected.
    const isOutdated = pod && !isRunning(pod) && pod.spec?.containers[0]?.image !== image
    if (!pod) await client.create('core/pods', filesPod(id, image, uid, setup), signal)
    else if (hasEnded(pod) || isOutdated) await client.remove(`core/pods/${name}`, { graceSeconds: 1 }, signal)
    else if (isRunning(pod)) return startIn(name)
    else awaited = { pod, name }
    return null
  }

  const session = await poll(attempt, { pauseMs: retryMs, timeoutMs, signal })
  if (session) return session
  const found = await findProblem(client, awaited.pod, awaited.name, signal)
  if (found) throw new SandboxProblemError(found.text)
  throw new SandboxUnavailableError(new Error(`the pod ${awaited.name} does not start`))
}
