import type { CoreV1Event, V1Pod } from '@kubernetes/client-node'
import { expect, test } from 'vitest'
import { problemOf } from '#sandbox/kubernetes/problems.ts'

const event = (reason: string, message: string) => ({ reason, message }) as CoreV1Event
const pod = (status: V1Pod['status'], metadata: V1Pod['metadata'] = {}): V1Pod => ({
  metadata,
  ...(status && { status }),
})
const waiting = (reason: string, message: string): V1Pod =>
  pod({
    phase: 'Pending',
    containerStatuses: [
      {
        ...{ name: 'agent', image: 'registry.test/agent:v1', imageID: '', ready: false, restartCount: 0 },
        state: { waiting: { reason, message } },
      },
    ],
  })
const unscheduled = (message: string) =>
  pod({ phase: 'Pending', conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message }] })

test.each<[string, V1Pod | null, CoreV1Event[], RegExp, boolean]>([
  [
    'a quota',
    null,
    [
      event(
        'FailedCreate',
        'pods "a-0" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1',
      ),
    ],
    /^The quota of the Kubernetes namespace has no room for the agent: .*exceeded quota: small.* Raise the quota/,
    true,
  ],
  [
    'an admission rule',
    null,
    [
      event('SuccessfulCreate', 'x'),
      event('FailedCreate', 'pods "a-0" is forbidden: maximum memory usage per Pod is 1Gi'),
    ],
    /^Kubernetes refuses the pod of the agent: .*maximum memory usage per Pod is 1Gi\.$/,
    true,
  ],
  [
    'an image that is not there',
    waiting('ImagePullBackOff', 'Back-off pulling image "registry.test/agent:v1"'),
    [],
    /^The image registry.test\/agent:v1 of the agent cannot be pulled: .* correct KUBERNETES_IMAGE/,
    true,
  ],
  [
    'a container that cannot be made',
    waiting('CreateContainerConfigError', 'secret "x" not found'),
    [],
    /secret "x" not found\.$/,
    true,
  ],
  [
    'no node',
    unscheduled('0/1 nodes are available: 1 Insufficient memory.'),
    [],
    /^No node of the cluster has room for the agent: 0\/1 nodes are available: 1 Insufficient memory\. Add nodes/,
    false,
  ],
  [
    'no volume',
    unscheduled('0/1 nodes are available: 1 pod has unbound immediate PersistentVolumeClaims.'),
    [],
    /^The volume of the agent is not there yet: .* Check that KUBERNETES_STORAGE_CLASS/,
    false,
  ],
  [
    'a volume that another node has',
    waiting('ContainerCreating', ''),
    [event('FailedAttachVolume', 'Multi-Attach error for volume "v"')],
    /^The volume of the agent cannot be attached to its node yet: Multi-Attach error/,
    false,
  ],
  [
    'an evicted pod',
    pod({ phase: 'Failed', reason: 'Evicted', message: 'The node was low on resource: memory.' }),
    [],
    /^The node has evicted the agent: The node was low on resource: memory\. It is started again\.$/,
    false,
  ],
  [
    'a lost node',
    pod({ phase: 'Running', reason: 'NodeLost' }, { deletionTimestamp: new Date(0) }),
    [],
    /^The node of the agent does not answer\. .*kubectl delete node\.$/,
    false,
  ],
])('%s is said in words, with what to do', (_name, seen, events, words, isLasting) => {
  const problem = problemOf(seen, events)
  expect(problem?.text).toMatch(words)
  expect(problem?.isLasting).toBe(isLasting)
})

test('a pod whose image is being loaded has no problem, nor one that was not made yet', () => {
  expect(problemOf(waiting('ContainerCreating', ''), [event('Pulling', 'Pulling image')])).toBeNull()
  expect(problemOf(null, [])).toBeNull()
})

test('what Kubernetes says is cut when it is long', () => {
  expect(problemOf(unscheduled('x'.repeat(5000)), [])?.text.length).toBeLessThan(600)
})
