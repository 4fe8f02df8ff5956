import type { V1ContainerStatus, V1Pod } from '@kubernetes/client-node'
import type { Observation } from '#sandbox/driver.ts'
import { containerNames } from './containers.ts'

const agentOf = (pod: V1Pod): V1ContainerStatus | undefined =>
  pod.status?.containerStatuses?.find(({ name }) => name === containerNames.agent)

/** The end of the first program of a pod. Kubernetes restarts the container, and the second program only waits. */
function endOf(pod: V1Pod) {
  const agent = agentOf(pod)
  return agent?.state?.terminated ?? agent?.lastState?.terminated ?? null
}

/** Whether other programs can run in a pod: after the end of the first one its container continues, and waits. */
export const takesPrograms = (pod: V1Pod): boolean =>
  agentOf(pod)?.state?.running !== undefined && pod.metadata?.deletionTimestamp === undefined

/** Whether the first program of a pod runs, and the pod is not being removed. */
export const isRunning = (pod: V1Pod): boolean => takesPrograms(pod) && endOf(pod) === null

/** Whether a pod runs no program of a sandbox now or later. */
export const hasEnded = (pod: V1Pod): boolean =>
  endOf(pod) !== null || pod.status?.phase === 'Failed' || pod.status?.phase === 'Succeeded'

/** Whether the node of a pod has reported a running program. */
export const runsContainer = ({ status }: V1Pod): boolean =>
  status?.containerStatuses?.some(({ state }) => state?.running !== undefined) ?? false

/** Whether a pod is being removed, and its node has reported that all of its programs have ended. */
export function isOver(pod: V1Pod): boolean {
  const isToldOf = pod.metadata?.deletionTimestamp !== undefined && (pod.status?.containerStatuses ?? []).length > 0
  return isToldOf && !runsContainer(pod)
}

/** The end of the gateway of a pod, if it ended by itself. */
export function exitOf(pod: V1Pod): Observation['exit'] {
  const end = endOf(pod)
  if (pod.metadata?.deletionTimestamp !== undefined || !end) return undefined
  return { code: end.exitCode, oom: end.reason === 'OOMKilled' }
}

/** When the first program of a pod was started. */
export function startOf(pod: V1Pod): Date | null {
  const startedAt = agentOf(pod)?.state?.running?.startedAt
  return startedAt === undefined ? null : new Date(startedAt)
}
