import type { CoreV1Event, V1Pod } from '@kubernetes/client-node'
import { poll } from '#platform/poll.ts'
import { SandboxProblemError } from '#sandbox/driver.ts'
import type { KubernetesClient } from './client.ts'
import { podName } from './objects.ts'
import { type Problem, problemOf } from './problems.ts'
import { hasEnded, isOver, isRunning, runsContainer } from './states.ts'

/** Shorter than the step of a start, so that the reason is known before the step ends. */
const startTimeoutMs = 50_000
/** After this time a start no longer waits for a problem that needs a person. */
const patienceMs = 15_000
const pollMs = 3000
/**
 * The time that Kubernetes needs in addition to the grace time: old kubelets check again after half a minute, some
 * later.
 */
const stopMarginMs = 45_000
/** Time until a node starts no more containers of a pod that is being removed. */
const settleMs = 2000
const retryMs = 300

/** The events of objects, the oldest first. */
async function eventsOf(
  client: KubernetesClient,
  names: readonly string[],
  signal: AbortSignal,
): Promise<CoreV1Event[]> {
  const found: CoreV1Event[] = []
  for (const name of names) {
    const query = { fieldSelector: `involvedObject.name=${name}` }
    for await (const event of client.list<CoreV1Event>('core/events', query, signal)) found.push(event)
  }
  const timeOf = ({ lastTimestamp, eventTime, metadata }: CoreV1Event) =>
    String(lastTimestamp ?? eventTime ?? metadata.creationTimestamp ?? '')
  return found.sort((a, b) => timeOf(a).localeCompare(timeOf(b)))
}

/** The reason why a pod does not run; null if unknown. Without a pod, the events of its StatefulSet have it. */
export const findProblem = async (
  client: KubernetesClient,
  pod: V1Pod | null,
  name: string,
  signal: AbortSignal,
): Promise<Problem | null> =>
  problemOf(pod, await eventsOf(client, pod ? [name] : [name, name.replace(/-0$/, '')], signal))

/** Waits until the pod of a sandbox runs. Throws SandboxProblemError with the reason when it does not. */
export async function waitForPod(client: KubernetesClient, id: string, signal: AbortSignal): Promise<void> {
  const over = new AbortController()
  const limited = AbortSignal.any([signal, over.signal])
  const startedAt = performance.now()
  let pod: V1Pod | null = null
  let problem: Problem | null = null
  const watching = (async () => {
    for await (const now of client.follow<V1Pod>('core/pods', podName(id), limited)) {
      pod = now
      if (pod && isRunning(pod)) return true
      if (pod && hasEnded(pod) && !pod.metadata?.deletionTimestamp) return true // observe reports the reason
    }
    return false
  })()
  const polling = poll(
    async () => {
      problem = await findProblem(client, pod, podName(id), limited)
      const tooLong = performance.now() - startedAt > patienceMs
      return problem?.isLasting && tooLong
    },
    { pauseMs: pollMs, timeoutMs: startTimeoutMs, signal: limited },
  ).then(() => false)
  try {
    if (await Promise.race([watching, polling])) return
  } finally {
    over.abort(new Error('the wait is over'))
    await Promise.allSettled([watching, polling])
    signal.throwIfAborted()
  }
  const found = problem as Problem | null
  throw new SandboxProblemError(
    found?.text ??
      `The agent was not started in ${startTimeoutMs / 1000} s: Kubernetes says nothing more about it. Its node may be ` +
        'loading the image.',
  )
}

/**
 * Removes a pod, if there is one, and waits until its programs have ended, or until it does not exist. Deletes one with
 * ended programs at once: kubelets do that seconds later, old ones half a minute, and no other pod can have its name
 * until then.
 */
export async function removePod(
  client: KubernetesClient,
  path: string,
  { graceSeconds, until }: { graceSeconds: number; until: 'ended' | 'gone' },
  signal: AbortSignal,
): Promise<void> {
  const pod = await client.find<V1Pod>(path, signal)
  if (!pod) return
  const uid = pod.metadata?.uid
  await client.remove(path, { graceSeconds, uid }, signal)
  let hasRunSince = false
  let overAt: number | null = null
  async function isDone(): Promise<boolean> {
    const now = await client.find<V1Pod>(path, signal)
    if (!now || now.metadata?.uid !== uid) return true
    hasRunSince ||= runsContainer(now)
    if (!isOver(now)) return false
    overAt ??= performance.now()
    // A pod that did not run when it was removed may just be started by its node.
    if (hasRunSince || performance.now() - overAt > settleMs)
      await client.remove(path, { graceSeconds: 0, uid }, signal)
    return until === 'ended'
  }
  const timeoutMs = graceSeconds * 1000 + stopMarginMs
  if (await poll(isDone, { pauseMs: retryMs, timeoutMs, signal })) return
  throw new SandboxProblemError(
    `Kubernetes did not remove the pod of the agent in ${timeoutMs / 1000} s. If its node does not answer, bring the ` +
      'node back, or remove it from the cluster: kubectl get nodes, kubectl delete node.',
  )
}
