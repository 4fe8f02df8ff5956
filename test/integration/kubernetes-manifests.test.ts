import { randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { cp, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { drainTimeoutMs } from '#composition/drain.ts'
import { turnDrainMs } from '#composition/settings.ts'
import { forwarderPort } from '#sandbox/container/layout.ts'
import { type Config, loadConfig, settingNames } from '#settings/config.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { codeBlocksOf } from '../support/code-blocks.ts'
import { provideProgram } from '../support/debian-package.ts'
import { buildManifests, type Manifest, manifestsIn, overlayFolder, overlays } from '../support/kubernetes-manifests.ts'
import { present } from '../support/present.ts'

const read = (file: string) => readFileSync(new URL(`../../${file}`, import.meta.url), 'utf8')
const { version } = JSON.parse(read('package.json'))
const processes = ['api', 'worker', 'relay'] as const
const secretFolder = '/run/secrets/chowder'

type Labels = Record<string, string>

const hasLabels = (labels: Labels = {}, wanted: Labels = {}) =>
  Object.entries(wanted).every(([name, value]) => labels[name] === value)

let hasKustomize: boolean
const built = new Map<string, Manifest[]>()

beforeAll(async () => {
  hasKustomize = await provideProgram('kustomize', 'kustomize', 'version')
  if (!hasKustomize && process.env.CI) throw new Error('there is no kustomize, and none could be installed')
  if (hasKustomize) for (const one of overlays) built.set(one, await buildManifests(overlayFolder(one)))
}, 400_000)

beforeEach((context) => context.skip(!hasKustomize, 'there is no kustomize'))

describe.each(overlays)('the overlay %s', (overlay) => {
  const manifests = () => present(built.get(overlay))
  const ofKind = (...kinds: string[]) => manifests().filter(({ kind }) => kinds.includes(kind))
  const named = (kind: string, name: string) => present(ofKind(kind).find(({ metadata }) => metadata.name === name))
  const workloads = () => ofKind('Deployment', 'StatefulSet', 'Job', 'CronJob', 'DaemonSet', 'Pod')
  const podOf = ({ spec }: Manifest) => spec.template.spec
  const containersOf = (workload: Manifest) => [
    ...podOf(workload).containers,
    ...(podOf(workload).initContainers ?? []),
  ]
  const chowderIn = (workload: Manifest) =>
    containersOf(workload).filter(({ image }: Manifest) => image.includes('chowder'))
  const deploymentOf = (process: (typeof processes)[number]) => named('Deployment', `chowder-${process}`)
  const settingsOf = ({ envFrom, env = [] }: Manifest): Record<string, string> =>
    Object.assign(
      {},
      ...envFrom.map(({ configMapRef }: Manifest) => named('ConfigMap', configMapRef.name).data),
      ...env.map(({ name, value }: Manifest) => ({ [String(name)]: value })),
    )

  /** The settings of a container as Chowder reads them, with its secrets in files. */
  async function configOf(workload: Manifest, container: Manifest): Promise<Config> {
    const mount = container.volumeMounts.find(({ mountPath }: Manifest) => mountPath === secretFolder)
    const { secret } = podOf(workload).volumes.find(({ name }: Manifest) => name === mount.name)
    const folder = await mkdtemp(join(tmpdir(), 'chowder-secrets-'))
    const values: Record<string, string> = {
      'database-url': `postgres://chowder:${newSecret('password')}@db:5432/chowder`,
      'redis-url': `redis://:${newSecret('password')}@redis:6379`,
      'secret-key': randomBytes(32).toString('base64'),
    }
    try {
      for (const { key, path } of secret.items) await writeFile(join(folder, path), present(values[key]))
      const settings = Object.entries(settingsOf(container))
      return loadConfig(
        Object.fromEntries(settings.map(([name, value]) => [name, value.replace(secretFolder, folder)])),
      )
    } finally {
      await rm(folder, { recursive: true })
    }
  }

  test('has pods of the profile `restricted` alone, with a read-only root and without variables of Services', () => {
    expect(workloads().length).toBeGreaterThan(2)
    for (const workload of workloads()) {
      const pod = podOf(workload)
      expect(pod, workload.metadata.name).toMatchObject({
        enableServiceLinks: false,
        securityContext: { runAsNonRoot: true, seccompProfile: { type: 'RuntimeDefault' } },
      })
      expect(pod.securityContext.runAsUser).toBeGreaterThan(0)
      for (const one of ['hostNetwork', 'hostPID', 'hostIPC']) expect(pod[one]).toBeUndefined()
      for (const container of containersOf(workload)) {
        expect(container.securityContext, `${workload.metadata.name}/${container.name}`).toEqual({
          allowPrivilegeEscalation: false,
          readOnlyRootFilesystem: true,
          capabilities: { drop: ['ALL'] },
        })
        expect(container.resources).toMatchObject({
          requests: { cpu: expect.anything(), memory: expect.anything() },
          limits: { memory: expect.anything() },
        })
        expect(container.ports?.some(({ hostPort }: Manifest) => hostPort) ?? false).toBe(false)
      }
      for (const volume of pod.volumes)
        expect(
          ['emptyDir', 'secret'].some((kind) => kind in volume),
          JSON.stringify(volume),
        ).toBe(true)
    }
  })

  test('runs one image of this version in all processes, as the roles that Chowder has', () => {
    const roles: string[] = []
    for (const process of processes) {
      const deployment = deploymentOf(process)
      for (const { image, args } of chowderIn(deployment)) {
        expect(image).toBe(`registry.example.com/chowder:${version}`)
        roles.push(...args)
      }
    }
    expect(roles).toEqual(['api', 'migrate', 'worker', 'migrate', 'relay', 'migrate'])
    const first = podOf(deploymentOf('api')).initContainers.map(({ name }: Manifest) => name)
    expect(first).toEqual(overlay === 'try' ? ['wait-for-postgres', 'migrate'] : ['migrate'])
  })

  test('sets what Chowder takes as settings, and no other', async () => {
    for (const process of processes) {
      const deployment = deploymentOf(process)
      for (const container of chowderIn(deployment)) {
        const names = Object.keys(settingsOf(container)).filter((name) => name !== 'NODE_OPTIONS') // of Node.js
        expect(settingNames).toEqual(expect.arrayContaining(names))
        const config = await configOf(deployment, container)
        expect(config).toMatchObject({ SANDBOX_DRIVER: 'kubernetes', RELAY_ROLE: 'relay' })
        const isWithoutQueue = process === 'relay' && container.name !== 'migrate'
        expect(config.REDIS_URL === undefined, `${process}/${container.name}`).toBe(isWithoutQueue)
      }
    }
  })

  test('gives each process the time that its drain takes', async () => {
    for (const process of processes) {
      const deployment = deploymentOf(process)
      const [container] = podOf(deployment).containers
      const config = await configOf(deployment, container)
      const waits = Number(container.lifecycle?.preStop.exec.command[1] ?? 0)
      expect(podOf(deployment).terminationGracePeriodSeconds).toBeGreaterThanOrEqual(
        waits + (turnDrainMs(config) + drainTimeoutMs) / 1000,
      )
      // Meanwhile clients and agents are led to other pods.
      if (process === 'api') expect(waits).toBeGreaterThan(4)
      if (process === 'relay') expect(waits).toBeGreaterThan(4)
      expect(deployment.spec.strategy.rollingUpdate).toEqual({ maxSurge: 1, maxUnavailable: 0 })
    }
  })

  test('has Services, probes and policies at the ports that the processes listen on', async () => {
    const metricsPort = Number(/METRICS_PORT=0\.0\.0\.0:(\d+)/.exec(read('Dockerfile'))?.[1])
    for (const process of processes) {
      const deployment = deploymentOf(process)
      const [container] = podOf(deployment).containers
      const config = await configOf(deployment, container)
      const portOf = Object.fromEntries(
        container.ports.map(({ name, containerPort }: Manifest) => [name as unknown as string, containerPort]),
      )
      expect(portOf.metrics).toBe(metricsPort)
      if (process === 'api') expect(portOf.http).toBe(config.PORT)
      if (process === 'relay') expect(portOf.relay).toBe(config.RELAY_PORT)
      const probes = ['startupProbe', 'livenessProbe', 'readinessProbe'].map((probe) => {
        const { path, port } = container[probe].httpGet
        return `${port}${path}`
      })
      expect(probes).toEqual(
        process === 'api'
          ? ['http/healthz', 'http/healthz', 'http/readyz']
          : ['metrics/healthz', 'metrics/healthz', 'metrics/healthz'],
      )
      const relayUrl = new URL(present(config.RELAY_URL))
      expect(Number(relayUrl.port)).toBe(config.RELAY_PORT)
      // A name without a namespace: pods of Chowder find a Service of their own.
      const { metadata, spec } = named('Service', relayUrl.hostname)
      expect(metadata.namespace).toBe(deployment.metadata.namespace)
      expect(spec.ports).toEqual([{ name: 'relay', port: config.RELAY_PORT, targetPort: 'relay' }])
    }
    const policy = (name: string) => named('NetworkPolicy', name).spec
    const portsIn = (rules: Manifest[]) => rules.flatMap(({ ports = [] }) => ports.map(({ port }: Manifest) => port))
    expect(portsIn(policy('chowder-api').ingress)).toEqual([8080])
    expect(portsIn(policy('chowder-relay').ingress)).toEqual([8090])
    expect(portsIn(policy('chowder-control').egress)).toEqual([forwarderPort, 8090, 443, 6443])
  })

  test('selects what is there, wherever it selects', () => {
    const pods = workloads().map(({ metadata, spec }) => ({
      namespace: metadata.namespace,
      ...spec.template.metadata.labels,
    }))
    const selected = (namespace: string | undefined, labels: Labels) =>
      pods.filter((pod) => pod.namespace === namespace && hasLabels(pod, labels))
    for (const { kind, metadata, spec } of manifests()) {
      const what = `${kind} ${metadata.name}`
      const { namespace } = metadata
      if (kind === 'Service') expect(selected(namespace, spec.selector), what).not.toEqual([])
      if (['Deployment', 'StatefulSet'].includes(kind))
        expect(selected(namespace, spec.selector.matchLabels), what).toHaveLength(1)
      if (kind === 'PodDisruptionBudget') expect(selected(namespace, spec.selector.matchLabels), what).toHaveLength(1)
      if (kind === 'NetworkPolicy' && spec.podSelector.matchLabels)
        expect(selected(namespace, spec.podSelector.matchLabels), what).not.toEqual([])
      if (kind === 'ServiceMonitor') {
        const { matchLabels } = spec.selector
        const services = ofKind('Service').filter((service) => hasLabels(service.metadata.labels, matchLabels))
        expect(services.map(({ spec }) => spec.ports[0].name)).toEqual(spec.endpoints.map(({ port }: Manifest) => port))
        expect(services[0]?.metadata.labels?.[spec.jobLabel]).toBe('chowder')
      }
      if (kind === 'HorizontalPodAutoscaler') {
        expect(named('Deployment', spec.scaleTargetRef.name).spec.replicas, 'it would be reset').toBeUndefined()
        for (const { external } of spec.metrics)
          if (external) expect(read('src/lifecycle/queue/backlog.ts')).toContain(`'${external.metric.name}'`)
      }
    }
    for (const { spec } of workloads())
      for (const { labelSelector } of spec.template.spec.topologySpreadConstraints ?? [])
        expect(spec.template.metadata.labels).toMatchObject(labelSelector.matchLabels)
  })

  test('gives rights to API and worker alone, in the namespace of the agents alone', async () => {
    expect(ofKind('ClusterRole', 'ClusterRoleBinding')).toEqual([])
    const given = ofKind('RoleBinding').map(({ metadata, roleRef, subjects }) => [
      metadata.namespace,
      roleRef.name,
      ...subjects.map(({ namespace, name }: Manifest) => `${namespace}/${name}`),
    ])
    const agents = overlay === 'try' ? 'chowder' : 'chowder-agents'
    expect(given).toEqual([
      [agents, 'chowder', 'chowder/chowder-worker'],
      [agents, 'chowder-api', 'chowder/chowder-api'],
    ])
    for (const role of ofKind('Role')) expect(role.metadata.namespace).toBe(agents)
    for (const process of ['api', 'worker'] as const) {
      const deployment = deploymentOf(process)
      expect((await configOf(deployment, podOf(deployment).containers[0])).KUBERNETES_NAMESPACE).toBe(agents)
      expect(named('ServiceAccount', podOf(deployment).serviceAccountName).metadata.namespace).toBe('chowder')
    }
    for (const workload of workloads()) {
      const hasToken = ['chowder-api', 'chowder-worker'].includes(workload.metadata.name)
      expect([workload.metadata.name, podOf(workload).automountServiceAccountToken]).toEqual([
        workload.metadata.name,
        hasToken ? undefined : false,
      ])
    }
    // The worker's Role has all that the API's has.
    const rights = (name: string) =>
      named('Role', name).rules.flatMap(({ apiGroups, resources, verbs }: Manifest) =>
        resources.flatMap((resource: string) => verbs.map((verb: string) => `${apiGroups[0]} ${resource} ${verb}`)),
      )
    expect(rights('chowder')).toEqual(expect.arrayContaining(rights('chowder-api')))
  })

  test('denies all traffic that no policy allows', () => {
    const denied = ofKind('NetworkPolicy')
      .filter(({ spec }) => JSON.stringify(spec) === '{"podSelector":{},"policyTypes":["Ingress","Egress"]}')
      .map(({ metadata }) => metadata.namespace)
    expect(new Set(denied)).toEqual(new Set(overlay === 'try' ? ['chowder'] : ['chowder', 'chowder-agents']))
    // Namespaces that have agents have the label that the policies of Chowder ask for.
    const namespaces = manifestsIn(
      read(`deploy/kubernetes/overlays/${overlay}/${overlay === 'try' ? 'namespace' : 'namespaces'}.yaml`),
    )
    const agents = namespaces.filter(({ metadata }) => metadata.labels?.['chowder.dev/agents'] === 'true')
    expect(agents.map(({ metadata }) => metadata.name)).toEqual([overlay === 'try' ? 'chowder' : 'chowder-agents'])
    for (const { metadata } of namespaces)
      expect(metadata.labels?.['pod-security.kubernetes.io/enforce']).toBe('restricted')
  })

  test('reads Secrets whose keys the documentation names, from files', () => {
    expect(ofKind('Secret')).toEqual([])
    expect(JSON.stringify(manifests())).not.toContain('secretKeyRef')
    const keys = new Set<string>()
    for (const workload of workloads()) {
      for (const { secret } of podOf(workload).volumes) {
        if (!secret) continue
        expect(secret.secretName).toBe('chowder')
        for (const { key } of secret.items) keys.add(key)
      }
    }
    expect([...keys].sort()).toEqual([
      'database-url',
      ...(overlay === 'try' ? ['postgres-password', 'redis-password'] : []),
      'redis-url',
      ...(overlay === 'try' ? ['redis.conf'] : []),
      'secret-key',
    ])
    const documented = read('docs/kubernetes.md')
    for (const key of keys) expect(documented).toContain(`\`${key}\``)
    if (overlay === 'try') {
      const script = read('deploy/kubernetes/overlays/try/generate-secrets.sh')
      for (const key of keys) expect(script).toContain(`\n  ${key}: `)
    }
  })

  test('has the current versions of the API', () => {
    expect([...new Set(manifests().map(({ apiVersion }) => apiVersion))].sort()).toEqual(
      [
        'apps/v1',
        'networking.k8s.io/v1',
        'rbac.authorization.k8s.io/v1',
        'v1',
        ...(overlay === 'try' ? [] : ['autoscaling/v2', 'monitoring.coreos.com/v1', 'policy/v1']),
      ].sort(),
    )
  })
})

describe('the overlay of an operator, as the documentation shows it', () => {
  test.each(overlays)('on %s', async (overlay) => {
    const folder = await mkdtemp(join(tmpdir(), 'chowder-overlay-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    const blocks = codeBlocksOf('docs/kubernetes.md').filter(({ language }) => language === 'yaml')
    const [base, removal] = ['# kustomization.yaml', 'patches:'].map((start) =>
      present(blocks.find(({ text }) => text.startsWith(start))).text.replace('overlays/try', `overlays/${overlay}`),
    )
    await cp(new URL('../../deploy', import.meta.url), join(folder, 'chowder/deploy'), { recursive: true })
    await mkdir(join(folder, 'own'))
    await writeFile(join(folder, 'own/kustomization.yaml'), `${base}${overlay === 'production' ? removal : ''}`)
    const manifests = await buildManifests(join(folder, 'own'))
    const images = JSON.stringify(manifests).match(/"image":"[^"]*chowder:[^"]*"/g)
    expect(new Set(images)).toEqual(new Set([`"image":"registry.acme.com/chowder:${version}"`]))
    const settings = present(manifests.find(({ kind }) => kind === 'ConfigMap')).data
    expect(settings).toMatchObject({ AGENT_RESOURCES: 'memory_mb=2048,cpus=2', RELAY_ROLE: 'relay' })
    expect(manifests.some(({ kind }) => kind === 'ServiceMonitor')).toBe(false)
    const kept = present(built.get(overlay)).filter(({ kind }) => kind !== 'ServiceMonitor')
    expect(manifests).toHaveLength(kept.length)
  })
})
