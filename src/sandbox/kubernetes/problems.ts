import type { CoreV1Event, V1ContainerStatus, V1Pod } from '@kubernetes/client-node'

/** The reason why the pod of an agent does not run, and the remedy. */
export interface Problem {
  text: string
  /** Whether waiting is useless, because the problem needs a person. */
  isLasting: boolean
}

const maxLength = 300

const said = (message: string | undefined): string => {
  const line = (message ?? 'it says no more').replace(/\s+/g, ' ').trim().replace(/\.$/, '')
  return line.length > maxLength ? `${line.slice(0, maxLength)}…` : line
}

const lasting = (text: string): Problem => ({ text, isLasting: true })
const passing = (text: string): Problem => ({ text, isLasting: false })

const imageReasons = ['ErrImagePull', 'ImagePullBackOff', 'InvalidImageName', 'ErrImageNeverPull', 'ImageInspectError']
const containerReasons = [
  'CreateContainerConfigError',
  'CreateContainerError',
  'RunContainerError',
  'StartError',
  'ContainerCannotRun',
]

function waitingProblem({ state, image }: V1ContainerStatus): Problem | null {
  const { reason = '', message } = state?.waiting ?? state?.terminated ?? {}
  if (imageReasons.includes(reason))
    return lasting(
      `The image ${image} of the agent cannot be pulled: ${said(message)}. Push it there, or correct KUBERNETES_IMAGE ` +
        'or the imagePullSecrets of the ServiceAccount default.',
    )
  if (containerReasons.includes(reason)) return lasting(`Kubernetes cannot start the agent: ${said(message)}.`)
  return null
}

function unscheduled(message: string | undefined): Problem {
  if (/persistentvolumeclaim|PersistentVolume|volume node affinity/i.test(message ?? ''))
    return passing(
      `The volume of the agent is not there yet: ${said(message)}. Check that KUBERNETES_STORAGE_CLASS is a class that ` +
        'provides volumes, and that it has room.',
    )
  return passing(
    `No node of the cluster has room for the agent: ${said(message)}. Add nodes, stop other agents, or lower its limits ` +
      'or KUBERNETES_REQUEST_PERCENT.',
  )
}

/** The latest event with one of these reasons. */
const latest = (events: readonly CoreV1Event[], ...reasons: string[]): CoreV1Event | undefined =>
  events.findLast(({ reason }) => reasons.includes(reason ?? ''))

/** The reason why the pod of an agent does not run, from its state and the events of its objects; null: unknown. */
export function problemOf(pod: V1Pod | null, events: readonly CoreV1Event[]): Problem | null {
  if (!pod) {
    const refused = latest(events, 'FailedCreate')
    if (!refused) return null
    if (/exceeded quota/i.test(refused.message ?? ''))
      return lasting(
        `The quota of the Kubernetes namespace has no room for the agent: ${said(refused.message)}. Raise the quota, or ` +
          'stop other agents.',
      )
    return lasting(`Kubernetes refuses the pod of the agent: ${said(refused.message)}.`)
  }
  const { status, metadata } = pod
  if (status?.reason === 'Evicted')
    return passing(`The node has evicted the agent: ${said(status.message)}. It is started again.`)
  const isLost =
    status?.reason === 'NodeLost' || status?.conditions?.some(({ reason }) => reason === 'NodeStatusUnknown')
  if (isLost || (metadata?.deletionTimestamp && latest(events, 'NodeNotReady', 'TaintManagerEviction')))
    return passing(
      'The node of the agent does not answer. Kubernetes starts the agent on another one when the node is back, or ' +
        'removed from the cluster: kubectl delete node.',
    )
  const scheduled = status?.conditions?.find(({ type }) => type === 'PodScheduled')
  if (scheduled?.status === 'False') return unscheduled(scheduled.message)
  for (const container of status?.containerStatuses ?? []) {
    const problem = waitingProblem(container)
    if (problem) return problem
  }
  const volume = latest(events, 'FailedAttachVolume', 'FailedMount', 'FailedMapVolume')
  if (volume && status?.phase === 'Pending')
    return passing(`The volume of the agent cannot be attached to its node yet: ${said(volume.message)}.`)
  const sandbox = latest(events, 'FailedCreatePodSandBox')
  if (sandbox && status?.phase === 'Pending')
    return passing(`Kubernetes cannot start the agent yet: ${said(sandbox.message)}.`)
  return null
}
