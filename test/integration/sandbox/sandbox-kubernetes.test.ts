import { randomUUID } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { loadYaml } from '@kubernetes/client-node'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import type { Logger } from '#platform/log.ts'
import { agentUid } from '#sandbox/container/layout.ts'
import { type SandboxDriver, SandboxProblemError, type SandboxSpec, SandboxUnavailableError } from '#sandbox/driver.ts'
import { createKubernetesClient } from '#sandbox/kubernetes/client.ts'
import { contractSpec } from '../../support/docker-host.ts'
import { describeDriver } from '../../support/driver-contract.ts'
import { type FakeKubernetes, type Rule, startFakeKubernetes } from '../../support/fake-kubernetes.ts'
import { contractSubject, kubernetesDriver } from '../../support/kubernetes-host.ts'
import { present } from '../../support/present.ts'
import { until } from '../../support/until.ts'

const within = (ms = 30_000) => AbortSignal.timeout(ms)

/** What a worker or an API may do, as operators give it to them. */
async function rules(of: 'role' | 'role-api' = 'role'): Promise<Rule[]> {
  const role = join(import.meta.dirname, `../../../deploy/kubernetes/base/agents/${of}.yaml`)
  return loadYaml<{ rules: Rule[] }>(await readFile(role, 'utf8')).rules
}

describeDriver('kubernetes', async () => {
  const fake = await startFakeKubernetes({ rules: await rules() })
  const folder = await mkdtemp(join(tmpdir(), 'chowder-kubernetes-'))
  const driver = kubernetesDriver({ ...fake, socketFolder: folder, installation: randomUUID() })
  return contractSubject(driver, async () => {
    await fake.close()
    await rm(folder, { recursive: true })
  })
})

describe('a sandbox in Kubernetes', () => {
  const installation = randomUUID()
  let fake: FakeKubernetes
  let folder: string
  let driver: SandboxDriver

  beforeAll(async () => {
    fake = await startFakeKubernetes({ rules: await rules(), protocol: 'v4.channel.k8s.io' })
    folder = await mkdtemp(join(tmpdir(), 'chowder-kubernetes-'))
    driver = kubernetesDriver({ ...fake, socketFolder: folder, installation })
  })
  afterEach(async () => {
    fake.podStatus = null
    fake.refusal = null
    fake.rules = await rules()
  })
  afterAll(async () => {
    await fake.close()
    await rm(folder, { recursive: true })
  })

  const created = async (overrides: Partial<SandboxSpec> = {}, by = driver) => {
    const id = randomUUID()
    await by.create(contractSpec(id, overrides), within())
    return id
  }
  const started = async (overrides: Partial<SandboxSpec> = {}) => {
    const id = await created(overrides)
    await driver.start(id, within())
    return id
  }
  const give = (id: string, path: string, content: string, by = driver) =>
    by.files(id).write(path, Buffer.from(content), {}, within())
  const textOf = async (id: string, path: string, by = driver) => {
    const file = await by.files(id).read(path, { maxBytes: 1000 }, within())
    return file && text(file.content())
  }
  const find = (resource: Parameters<FakeKubernetes['find']>[0], name: string) => present(fake.find(resource, name))

  test('is a pod of the restricted profile, without a token of the cluster and without a secret', async () => {
    const id = await started()
    const { spec } = find('pods', `chowder-${id}-0`)
    expect(spec).toMatchObject({
      automountServiceAccountToken: false,
      shareProcessNamespace: true,
      dnsPolicy: 'None',
      securityContext: {
        runAsNonRoot: true,
        runAsUser: agentUid(id),
        runAsGroup: 10_001,
        seccompProfile: { type: 'RuntimeDefault' },
      },
    })
    expect(spec.hostNetwork ?? spec.hostPID ?? spec.hostIPC).toBeUndefined()
    expect(spec.volumes.map(({ name }: { name: string }) => name)).toEqual(['agent', 'tmp', 'run'])
    expect(spec.containers[0]).toMatchObject({
      workingDir: '/', // that of the image would be made in the volume, for root
      securityContext: {
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      },
      resources: { limits: { memory: '512Mi', cpu: '1000m' }, requests: { memory: '51Mi', cpu: '100m' } },
      readinessProbe: { httpGet: { path: '/readyz', port: 18_790 } },
    })
  })

  test('T1: keeps the user that the files of its volume have had before', async () => {
    const id = await created()
    find('statefulsets', `chowder-${id}`).spec.template.spec.securityContext.runAsUser = 10_001
    await driver.create(contractSpec(id, { resources: { memoryMb: 600, cpus: 1, pids: 64, diskMb: 0 } }), within())
    await give(id, 'file', 'x')
    await driver.start(id, within())
    for (const pod of [`chowder-${id}-0`, `chowder-${id}-files`].map((name) => fake.find('pods', name)))
      if (pod) expect(pod.spec.securityContext.runAsUser).toBe(10_001)
    expect(find('pods', `chowder-${id}-0`).spec.containers[0].resources.limits.memory).toBe('600Mi')
  })

  test('reaches the relay alone, and is reached by the control plane alone', async () => {
    const outside = await created()
    const inside = await created({}, kubernetesDriver({ ...fake, installation, controlNamespace: 'chowder' }))
    const policyOf = (id: string) => find('networkpolicies', `chowder-${id}`).spec
    expect(policyOf(outside)).toEqual({
      podSelector: { matchLabels: { 'chowder.dev/instance': outside } },
      policyTypes: ['Ingress', 'Egress'],
      ingress: [],
      egress: [{ to: [{ ipBlock: { cidr: '10.99.0.1/32' } }], ports: [{ protocol: 'TCP', port: 8090 }] }],
    })
    const chowder = {
      namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'chowder' } },
      podSelector: { matchLabels: { 'app.kubernetes.io/name': 'chowder' } },
    }
    expect(policyOf(inside)).toMatchObject({
      ingress: [{ from: [chowder], ports: [{ protocol: 'TCP', port: 18_790 }] }],
      egress: [{ to: [chowder], ports: [{ protocol: 'TCP', port: 8090 }] }],
    })
  })

  test('in a cluster it is reached at the address of its Service', async () => {
    const inside = kubernetesDriver({ ...fake, installation, controlNamespace: 'chowder' })
    const id = await created({}, inside)
    await inside.start(id, within())
    expect((await inside.observe(id, within())).endpoint).toEqual({
      kind: 'tcp',
      host: `chowder-${id}.agents.svc`,
      port: 18_790,
    })
    expect(find('services', `chowder-${id}`).spec).toMatchObject({
      selector: { 'chowder.dev/instance': id },
      publishNotReadyAddresses: true,
    })
  })

  test('that uses too much memory is ended, and reports the reason', async () => {
    const id = await started()
    await fake.kill(`chowder-${id}-0`, 'OOMKilled')
    await until('its end', async () => (await driver.observe(id, within())).state === 'stopped')
    expect((await driver.observe(id, within())).exit).toEqual({ code: 137, oom: true })
  })

  test('has no folder of OpenClaw below /tmp, which everybody may write to there and has no sticky bit', async () => {
    const id = await started()
    const isMade = 'until [ -e /tmp/openclaw ]; do sleep 0.1; done'
    const look = `${isMade}; stat -c %a /tmp && mkdir -p /tmp/openclaw 2>/dev/null || echo refused`
    expect((await driver.exec(id, ['sh', '-c', look], { timeoutMs: 10_000 }, within())).stdout).toBe('777\nrefused\n')
  })

  test('has its files read by a pod that is removed at a start', async () => {
    const id = await created()
    await give(id, 'kept', 'yes')
    const pod = find('pods', `chowder-${id}-files`)
    expect(pod.spec).toMatchObject({ restartPolicy: 'Never', automountServiceAccountToken: false })
    expect((await driver.observe(id, within())).state).toBe('stopped')
    await driver.start(id, within())
    expect(fake.find('pods', `chowder-${id}-files`)).toBeUndefined()
    expect(await textOf(id, 'kept')).toBe('yes')
  })

  test('has its files read once its image is corrected', async () => {
    const wrong = kubernetesDriver({ ...fake, installation, repository: 'registry.invalid/agent' })
    const id = await created({}, wrong)
    fake.podStatus = (pod) =>
      String(pod.spec.containers[0].image).startsWith('registry.invalid/')
        ? {
            phase: 'Pending',
            containerStatuses: [
              { name: 'agent', state: { waiting: { reason: 'ImagePullBackOff', message: 'not found' } } },
            ],
          }
        : null
    const giving = give(id, 'kept', 'yes', wrong).catch(() => {})
    await until('a pod that waits', () => fake.find('pods', `chowder-${id}-files`)?.status?.phase === 'Pending')
    await driver.create(contractSpec(id, {}), within())
    await give(id, 'kept', 'yes')
    expect(await textOf(id, 'kept')).toBe('yes')
    await giving
  })

  // For as long as a pod may take to start.
  test('says why it does not start also when its files are asked for', {
    tags: ['long'],
    timeout: 120_000,
  }, async () => {
    const id = await created()
    const message = '0/1 nodes are available: 1 Insufficient memory.'
    fake.podStatus = () => ({
      phase: 'Pending',
      conditions: [{ type: 'PodScheduled', status: 'False', reason: 'Unschedulable', message }],
    })
    await expect(driver.start(id, within(1000))).rejects.toThrow()
    const giving = driver.files(id).write('kept', Buffer.from('yes'), {}, within(100_000))
    await expect(giving).rejects.toThrow(/^No node of the cluster has room for the agent: .*Insufficient memory/)
  })

  test('is read and written by an API, which can neither make, start, stop nor destroy it', async () => {
    const inside = kubernetesDriver({ ...fake, installation, controlNamespace: 'chowder' })
    const [running, stopped] = [await started(), await created()]
    fake.rules = await rules('role-api')
    for (const id of [running, stopped]) {
      await give(id, 'kept', 'yes', inside)
      expect(await textOf(id, 'kept', inside)).toBe('yes')
      expect((await inside.readLog(id, { lines: 10 }, within())).hasGap).toBe(false)
    }
    expect((await inside.observe(running, within())).state).toBe('running')
    expect((await inside.measure(running, within())).processes).toBeGreaterThan(0)
    expect((await inside.exec(running, ['/bin/echo', 'hello'], { timeoutMs: 10_000 }, within())).stdout).toBe('hello\n')
    await expect(created({}, inside)).rejects.toThrow(SandboxUnavailableError)
    await expect(inside.start(stopped, within())).rejects.toThrow(SandboxUnavailableError)
    await expect(inside.stop(running, { graceMs: 0 }, within())).rejects.toThrow(SandboxUnavailableError)
    await expect(inside.destroy(running, within())).rejects.toThrow(SandboxUnavailableError)
  })

  test('keeps its files when it is made anew, with another size, command or environment', async () => {
    const id = await started()
    await give(id, 'memory', 'kept')
    await driver.stop(id, { graceMs: 3000 }, within())
    await driver.create(
      contractSpec(id, {
        env: ({ home }) => ({ HOME: home, MARK: 'other' }),
        resources: { memoryMb: 600, cpus: 1, pids: 64, diskMb: 0 },
      }),
      within(),
    )
    await driver.start(id, within())
    const { stdout } = await driver.exec(id, ['sh', '-c', 'cat memory; echo $MARK'], { timeoutMs: 10_000 }, within())
    expect(stdout).toBe('keptother\n')
    expect((await driver.measure(id, within())).memoryLimitBytes).toBe(600 * 1024 * 1024)
    const { env } = find('statefulsets', `chowder-${id}`).spec.template.spec.containers[0]
    expect(env.map(({ name }: { name: string }) => name)).toEqual(['HOME', 'MARK'])
  })

  test('is one sandbox when control planes make, start, stop and destroy it at the same time', async () => {
    const id = randomUUID()
    const all = [driver, kubernetesDriver({ ...fake, installation }), kubernetesDriver({ ...fake, installation })]
    await Promise.all(all.map((each) => each.create(contractSpec(id), within())))
    await Promise.all(all.map((each, index) => give(id, `file-${index}`, String(index), each)))
    expect(await Promise.all(all.map((each, index) => textOf(id, `file-${(index + 1) % 3}`, each)))).toEqual([
      '1',
      '2',
      '0',
    ])
    await Promise.all(all.map((each) => each.start(id, within())))
    await Promise.all(all.map((each) => each.stop(id, { graceMs: 3000 }, within())))
    await Promise.all(all.map((each) => each.destroy(id, within())))
    for (const resource of ['pods', 'statefulsets', 'services', 'networkpolicies', 'persistentvolumeclaims'] as const)
      expect(fake.objects(resource).filter(({ metadata }) => metadata.name.includes(id))).toEqual([])
  })

  test('is listed and destroyed when a killed create left only its volume', async () => {
    const id = await created()
    await driver.destroy(id, within())
    const { labels } = find('statefulsets', `chowder-${await created()}`).metadata
    const metadata = { name: `chowder-${id}`, labels: { ...labels, 'chowder.dev/instance': id } }
    const client = createKubernetesClient(fake.cluster, fake.namespace)
    await client.create('core/persistentvolumeclaims', { metadata }, within())
    const listed = async (by = driver) => {
      const found: string[] = []
      for await (const sandbox of by.list(within())) found.push(sandbox.id)
      return found
    }
    expect(await listed()).toContain(id)
    expect(await listed(kubernetesDriver({ ...fake, installation: randomUUID() }))).toEqual([])
    await driver.destroy(id, within())
    expect(await listed()).not.toContain(id)
  })

  test('starts although the API asks to wait, ends its watches, and forgets old versions', async () => {
    const id = await created()
    fake.fail({ code: 429, retryAfter: 1, times: 2, of: /^GET .*statefulsets/ })
    const startedAt = performance.now()
    await driver.observe(id, within())
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(1900)
    fake.podStatus = () => ({ phase: 'Pending' })
    const starting = driver.start(id, within())
    const isWatched = () => fake.requests.some((request) => request.includes('watch=true') && request.includes(id))
    await until('a watch', isWatched)
    fake.podStatus = null
    fake.forgetVersions()
    // The controller makes another pod, which runs.
    const client = createKubernetesClient(fake.cluster, fake.namespace)
    await client.remove(`core/pods/chowder-${id}-0`, { graceSeconds: 1 }, within())
    await starting
    expect((await driver.observe(id, within())).state).toBe('running')
  })

  test.each([
    [
      'the quota of the namespace',
      /^The quota of the Kubernetes namespace has no room/,
      () => {
        fake.refusal = 'pods "a-0" is forbidden: exceeded quota: small'
      },
    ],
    [
      'an image that cannot be pulled',
      /^The image registry.test\/chowder-openclaw:v1-\w+ of the agent cannot be pulled: not found\./,
      () => {
        fake.podStatus = (pod) => ({
          phase: 'Pending',
          containerStatuses: [
            {
              name: 'agent',
              image: pod.spec.containers[0].image,
              state: { waiting: { reason: 'ErrImagePull', message: 'not found' } },
            },
          ],
        })
      },
    ],
  ])('that does not start says why: %s', { tags: ['long'] }, async (_name, words, cause) => {
    const id = await created()
    cause()
    const problem = await driver.start(id, within(45_000)).catch((error: unknown) => error)
    expect(problem).toBeInstanceOf(SandboxProblemError)
    expect((problem as Error).message).toMatch(words)
    await driver.stop(id, { graceMs: 1000 }, within())
    fake.podStatus = null
    fake.refusal = null
    await driver.start(id, within())
    expect((await driver.observe(id, within())).state).toBe('running')
  })

  test('of a cluster that refuses the credentials is on a platform that is not available', async () => {
    const refused = kubernetesDriver({ ...fake, namespace: 'other', installation })
    await expect(refused.observe('x', within())).rejects.toThrow(SandboxUnavailableError)
    expect(await refused.outage?.(within())).toMatch(/^Kubernetes at http:\S+ refuses Chowder: .*Check the credentials/)
    expect(await driver.outage?.(within())).toBeNull()
  })
})

test('a cluster that cannot be reached is a platform that is not available, and is said once', async () => {
  const cluster = { server: 'http://127.0.0.1:9', access: async () => ({ tls: {}, headers: {} }) }
  const lines: string[] = []
  const log = { info: () => {}, warn: (line: unknown) => void lines.push(String(line)) } as unknown as Logger
  const driver = kubernetesDriver({ cluster, namespace: 'agents', installation: randomUUID(), log })
  await expect(driver.observe('x', within())).rejects.toThrow(SandboxUnavailableError)
  await expect(driver.files('x').stat('a', within())).rejects.toThrow(SandboxUnavailableError)
  expect(lines).toEqual(['Kubernetes cannot be reached at http://127.0.0.1:9. Check KUBECONFIG and the network.'])
})
