import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { buildPodImage } from '../support/agent-sandboxes.ts'
import { type Answer, type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { codeBlocksOf } from '../support/code-blocks.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { repository, startCluster, type TestCluster } from '../support/kubernetes-cluster.ts'
import { overlayFolder, overlays } from '../support/kubernetes-manifests.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const run = promisify(execFile)
const minute = 60_000
const root = join(import.meta.dirname, '../..')
const support = join(root, 'test/support')
const inImage = [
  '.dockerignore',
  'Dockerfile',
  'docs',
  'migrations',
  'openapi.json',
  'package-lock.json',
  'package.json',
  'releases',
  'src',
]
const image = 'chowder.test/chowder'
const databases = ['postgres:17', 'redis:8']
const processes = ['api', 'worker', 'relay']
const podAddress = 'jsonpath={.items[0].status.podIP}'
const providerKey = newSecret('provider key', 'sk-ant-')

interface PodRequests {
  status: { phase: string }
  spec: { containers: { resources: { requests?: { memory?: string } } }[] }
}

/** The amount of memory that Kubernetes writes like `512Mi`, `2Gi` or `24689432Ki`. */
function mebibytes(amount = '0'): number {
  const [, count, unit = ''] = /^(\d+)([KMG]i)?$/.exec(amount) ?? []
  return Number(count) * { '': 1 / 1024 ** 2, Ki: 1 / 1024, Mi: 1, Gi: 1024 }[unit as 'Ki']
}

/** Builds the images that the deployment needs: this version, the next one with a migration, and what they run beside. */
async function buildImages(dockerd: TestDockerd): Promise<string[]> {
  const { docker } = dockerd
  for (const name of databases) {
    const target = name.split(':')[0] ?? ''
    await docker('build', '-q', '--network', 'host', '--target', target, '-t', name, join(support, 'compose-images'))
  }
  const context = await mkdtemp(join(tmpdir(), 'chowder-image-'))
  try {
    for (const path of inImage) await cp(join(root, path), join(context, path), { recursive: true })
    await docker('build', '-q', '--network', 'host', '-t', `${image}:1`, context)
    const journalPath = join(context, 'migrations/meta/_journal.json')
    const journal = JSON.parse(await readFile(journalPath, 'utf8'))
    const last = journal.entries.at(-1)
    journal.entries.push({ ...last, idx: last.idx + 1, when: last.when + 1, tag: 'next' })
    await writeFile(journalPath, JSON.stringify(journal))
    await writeFile(join(context, 'migrations/next.sql'), 'ALTER TABLE organizations ADD COLUMN next text;')
    await docker('build', '-q', '--network', 'host', '-t', `${image}:2`, context)
  } finally {
    await rm(context, { recursive: true })
  }
  const agent = await buildPodImage(dockerd, repository)
  return [...databases, `${image}:1`, `${image}:2`, agent]
}

describe('deploy/kubernetes', () => {
  let outside: Outside
  let cluster: TestCluster
  let folder: string
  let before: string[]
  let signupToken: string
  let key: string
  let client: Api
  let url: string
  let agent: string

  const inChowder = (...args: string[]) => cluster.kubectl('-n', 'chowder', ...args)
  const lines = (text: string) => text.split('\n').filter(Boolean)
  /** The names of all objects of the cluster. */
  const allObjects = async () => {
    const kinds = lines(await cluster.kubectl('api-resources', '--verbs=list', '-o', 'name'))
    const kept = kinds.filter((kind) => !kind.startsWith('events'))
    return lines(await cluster.kubectl('get', kept.join(','), '-A', '--ignore-not-found', '-o', 'name')).sort()
  }
  const rolledOut = async () => {
    for (const one of processes) await inChowder('rollout', 'status', `deployment/chowder-${one}`, '--timeout=5m')
  }

  /** The overlay of an operator on `try`, as the documentation shows it. */
  const writeOverlay = (tag: string) =>
    writeFile(
      join(folder, 'kustomization.yaml'),
      `apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [chowder/deploy/kubernetes/overlays/try]
images: [{ name: registry.example.com/chowder, newName: ${image}, newTag: "${tag}" }]
configMapGenerator:
  - name: chowder
    namespace: chowder
    behavior: merge
    literals:
      - KUBERNETES_IMAGE=${repository}
      - ANTHROPIC_BASE_URL=http://${outside.address}:${outside.port}
      - AGENT_RESOURCES=memory_mb=2048,cpus=1,disk_mb=1024
      - CHOWDER_ALLOWED_HOSTS=*
`,
    )

  beforeAll(async () => {
    const dockerd = await startDockerd()
    try {
      const images = await buildImages(dockerd)
      cluster = await startCluster()
      await cluster.load(dockerd.host, images)
    } finally {
      await dockerd.close()
    }
    before = await allObjects()
    const provider = (at: number) => [
      join(support, 'fake-model-provider.mjs'),
      '--host',
      '0.0.0.0',
      '--port',
      String(at),
    ]
    outside = await openOutside(provider)
    folder = await mkdtemp(join(tmpdir(), 'chowder-deploy-'))
    await mkdir(join(folder, 'chowder/deploy'), { recursive: true })
    await cp(join(root, 'deploy/kubernetes'), join(folder, 'chowder/deploy/kubernetes'), { recursive: true })
    await writeOverlay('1')
    const env = { ...process.env, KUBECONFIG: cluster.kubeconfig }
    await run(join(overlayFolder('try'), 'generate-secrets.sh'), { env })
    expect((await run(join(overlayFolder('try'), 'generate-secrets.sh'), { env })).stdout).toContain('there already')
    await cluster.kubectl('apply', '-k', folder)
    await rolledOut()
    const address = await inChowder('get', 'service', 'chowder-api', '-o', 'jsonpath={.spec.clusterIP}')
    url = `http://${address}:8080`
    const admin = ['exec', 'deployment/chowder-api', '--', 'node', 'src/commands/admin.ts']
    signupToken = (await inChowder(...admin, 'signup-token')).trim()
    key = await signUp(url, providerKey, signupToken)
    client = api(url, key)
    const create = `curl -sS "$URL/v1/instances" -H "authorization: Bearer $KEY" -H 'content-type: application/json' -d '{"name": "my-assistant"}'`
    agent = JSON.parse((await run('bash', ['-c', create], { env: { ...process.env, URL: url, KEY: key } })).stdout).id
    await waitForStatus(client, agent, 'running', 5 * minute)
  }, 100 * minute)

  afterAll(async () => {
    await outside?.close()
    await cluster?.close()
    if (folder) await rm(folder, { recursive: true })
  }, 3 * minute)

  /** What changes when an agent is restarted. */
  const startOf = async () => {
    const pod = JSON.parse(await inChowder('get', 'pod', `chowder-${agent}-0`, '-o', 'json'))
    const [{ restartCount, state }] = pod.status.containerStatuses
    return [pod.metadata.uid, restartCount, state.running?.startedAt]
  }
  const podsOfChowder = async () => {
    const found = await inChowder('get', 'pods', '-l', 'app.kubernetes.io/name=chowder', '-o', 'json')
    return JSON.parse(found).items.map(
      ({ metadata, spec }: { metadata: { name: string }; spec: { containers: { image: string }[] } }) => [
        metadata.name,
        spec.containers[0]?.image,
      ],
    ) as [string, string][]
  }

  it('gives a whole Chowder, whose agents talk and remember', async () => {
    expect(await say(client, sessionPath(agent), 'my name is Ada')).toContain('turns=1 last="my name is Ada"')
    expect(await say(client, sessionPath(agent), 'what is my name?')).toContain('turns=2')
    expect((await client.get('/readyz')).body).toMatchObject({ status: 'ready', workers: 1 })
  })

  it('lets the API read and write the files, and read the output of agents', async () => {
    const files = `/v1/instances/${agent}/files/content`
    expect((await client.put(files, { path: 'notes.txt', content: 'kept' })).status).toBeLessThan(300)
    expect((await client.get(`${files}?path=notes.txt`)).body.content).toBe('kept')
    expect((await client.get(`/v1/instances/${agent}/logs`)).status).toBe(200)
    expect((await client.get(`/v1/instances/${agent}/metrics`)).body.memory_bytes).toBeGreaterThan(0)
  })

  it('gives no token of the cluster to the relay, and only what its Role has to the API', async () => {
    const look = ['--', 'ls', '/var/run/secrets/kubernetes.io']
    expect(await inChowder('exec', 'deployment/chowder-relay', ...look).catch(String)).toContain('No such file')
    const can = (account: string, ...what: string[]) =>
      inChowder('auth', 'can-i', ...what, '--as', `system:serviceaccount:chowder:${account}`).then(
        () => true,
        () => false,
      )
    expect(await can('chowder-worker', 'create', 'statefulsets.apps')).toBe(true)
    expect(await can('chowder-api', 'create', 'statefulsets.apps')).toBe(false)
    expect(await can('chowder-api', 'get', 'statefulsets.apps')).toBe(true)
    for (const account of ['chowder-worker', 'chowder-api', 'chowder-relay'])
      expect(await can(account, 'get', 'secrets'), account).toBe(false)
  })

  it('shows no secret in its objects and logs', async () => {
    const objects = await inChowder('get', 'all,configmaps,pods,networkpolicies', '-o', 'yaml')
    const logs = await Promise.all(
      processes.map((one) => inChowder('logs', `deployment/chowder-${one}`, '--all-containers', '--tail=-1')),
    )
    const { data } = JSON.parse(await inChowder('get', 'secret', 'chowder', '-o', 'json'))
    const generated = Object.values<string>(data).map((value) => Buffer.from(value, 'base64').toString().trim())
    expect(generated).toHaveLength(6)
    const shown = [objects, ...logs].join('\n')
    expect(shown).toContain('Chowder is running as relay')
    for (const secret of [...generated, providerKey, key, signupToken]) expect(shown.includes(secret)).toBe(false)
  })

  it('is backed up by the commands of the documentation', async () => {
    const blocks = codeBlocksOf('docs/backup.md').filter(({ text }) => text.includes('kubectl'))
    const env = { ...process.env, KUBECONFIG: cluster.kubeconfig }
    await run('bash', ['-euc', present(blocks[0]).text], { cwd: folder, env })
    expect(await readFile(join(folder, 'backup/database.sql'), 'utf8')).toContain('PostgreSQL database dump complete')
    expect(await readFile(join(folder, 'backup/secret-key'), 'utf8')).toMatch(/^[A-Za-z0-9+/]{43}=$/)
  })

  const create = async (name: string): Promise<string> => {
    const { status, body } = await client.post('/v1/instances', { name })
    expect(status).toBe(201)
    return body.id
  }
  /** Waits until an instance is an error, and returns its message. */
  const messageOf = (id: string) =>
    until(
      'an error',
      async () => {
        const { status, error_message } = (await client.get(`/v1/instances/${id}`)).body
        return status === 'error' && String(error_message)
      },
      10 * minute,
    )
  const remove = async (id: string) => {
    await client.delete(`/v1/instances/${id}`)
    const isGone = async () => !(await inChowder('get', 'pods,statefulsets,pvc', '-o', 'name')).includes(id)
    await until('the end of a sandbox', isGone, 3 * minute)
  }

  it('finishes what a worker had begun that is lost', { timeout: 8 * minute }, async () => {
    const id = await create('begun')
    const isBegun = async () => (await inChowder('get', 'statefulsets', '-o', 'name')).includes(id)
    await until('the worker to begin', isBegun, minute)
    await inChowder('delete', 'pods', '-l', 'app.kubernetes.io/component=worker', '--force', '--grace-period=0')
    await waitForStatus(client, id, 'running', 5 * minute)
    expect(await say(client, sessionPath(id), 'hello')).toContain('turns=1')
    await remove(id)
  })

  it('restarts no agent when the kubelet is killed and comes back', { timeout: 8 * minute }, async () => {
    const started = await startOf()
    const address = await inChowder('get', 'pods', '-l', 'app.kubernetes.io/component=api', '-o', podAddress)
    await cluster.setKubelet('killed')
    try {
      // Services have no pods on a node that is lost, but the API works at the address of its own pod.
      const direct = api(`http://${address}:8080`, key)
      await sleep(30_000)
      expect((await direct.get(`/v1/instances/${agent}`)).body).toMatchObject({
        status: 'running',
        error_message: null,
      })
    } finally {
      await cluster.setKubelet('running')
    }
    await until('the API', async () => (await client.get('/readyz').catch(() => null))?.status === 200, 2 * minute)
    const isAnswered = () => say(client, sessionPath(agent, 'kubelet'), 'are you there?').catch(() => '')
    expect(await until('an answer', isAnswered, 2 * minute)).toContain('are you there?')
    expect(await startOf()).toEqual(started)
  })

  it('says that a node is full, and starts the agent once it has room', { timeout: 15 * minute }, async () => {
    const node = JSON.parse(await cluster.kubectl('get', 'node', 'localhost', '-o', 'json'))
    const pods = JSON.parse(await cluster.kubectl('get', 'pods', '-A', '-o', 'json')).items as PodRequests[]
    const requested = pods
      .filter(({ status }) => status.phase === 'Running')
      .flatMap(({ spec }) => spec.containers.map(({ resources }) => mebibytes(resources.requests?.memory)))
    const free = mebibytes(node.status.allocatable.memory) - requested.reduce((sum, one) => sum + one, 0)
    const requests = { memory: `${Math.floor(free) - 64}Mi` }
    const filler = { name: 'filler', image: 'chowder.test/pause:1', resources: { requests, limits: requests } }
    const pod = { apiVersion: 'v1', kind: 'Pod', metadata: { name: 'filler' }, spec: { containers: [filler] } }
    await writeFile(join(folder, 'filler.json'), JSON.stringify(pod))
    await cluster.kubectl('apply', '-n', 'default', '-f', join(folder, 'filler.json'))
    await cluster.kubectl('wait', '-n', 'default', 'pod/filler', '--for=condition=Ready', '--timeout=2m')
    const id = await create('without room')
    const removeFiller = () =>
      cluster.kubectl('delete', '-n', 'default', 'pod', 'filler', '--grace-period=0', '--force')
    const message = await messageOf(id).finally(removeFiller)
    expect(message).toMatch(/No node of the cluster has room for the agent: .*Insufficient memory.* Add nodes/)
    expect((await client.post(`/v1/instances/${id}/start`)).status).toBeLessThan(300)
    await waitForStatus(client, id, 'running', 5 * minute)
    await remove(id)
  })

  it('says that an image cannot be pulled, and starts the agent with the right one', {
    timeout: 15 * minute,
  }, async () => {
    const setImage = async (setting: string) => {
      await inChowder('set', 'env', 'deployment/chowder-worker', setting)
      await inChowder('rollout', 'status', 'deployment/chowder-worker', '--timeout=5m')
    }
    await setImage('KUBERNETES_IMAGE=registry.invalid/agent')
    const id = await create('without an image')
    const message = await messageOf(id).finally(() => setImage('KUBERNETES_IMAGE-'))
    expect(message).toMatch(/The image registry\.invalid\/agent:\S+ of the agent cannot be pulled: .* Push it there/)
    expect((await client.post(`/v1/instances/${id}/start`)).status).toBeLessThan(300)
    await waitForStatus(client, id, 'running', 5 * minute)
    await remove(id)
  })

  // Kubernetes 1.20 does not have today's versions of two kinds. ServiceMonitors are a kind of the operator of Prometheus.
  it.each(overlays)('has objects that the API takes: %s', { timeout: 3 * minute }, async (overlay) => {
    const file = join(folder, `${overlay}.yaml`)
    const namespaces = join(overlayFolder('production'), 'namespaces.yaml')
    await cluster.kubectl('create', 'namespace', 'chowder-agents')
    try {
      expect(await cluster.kubectl('apply', '--dry-run=server', '-f', namespaces)).toContain('namespace/chowder-agents')
      const built = await cluster.kubectl('kustomize', overlayFolder(overlay))
      const known = built
        .replaceAll(/^apiVersion: autoscaling\/v2$/gm, 'apiVersion: autoscaling/v2beta2')
        .replaceAll(/^apiVersion: policy\/v1$/gm, 'apiVersion: policy/v1beta1')
        .split('\n---\n')
        .filter((object) => !/^kind: ServiceMonitor$/m.test(object))
      await writeFile(file, known.join('\n---\n'))
      const taken = lines(await cluster.kubectl('apply', '--dry-run=server', '-f', file))
      expect(taken).toHaveLength(known.length)
      expect(taken.filter((line) => !line.endsWith('(server dry run)'))).toEqual([])
    } finally {
      await cluster.kubectl('delete', 'namespace', 'chowder-agents')
    }
  })

  it('is upgraded, with a migration, while it is used', { timeout: 15 * minute }, async () => {
    const started = await startOf()
    const old = (await podsOfChowder()).map(([name]) => name)
    expect(old).toHaveLength(3)
    let isOver = false
    const failed: unknown[] = []
    const done = { polls: 0, creates: 0, streams: 0 }
    async function repeat(what: keyof typeof done, everyMs: number, act: () => Promise<unknown>): Promise<void> {
      while (!isOver) {
        const fault = await act().catch(String)
        if (fault) failed.push([what, fault])
        done[what] += 1
        await sleep(everyMs)
      }
    }
    const unlessDone = ({ status, body }: Answer) => (status < 300 ? null : [status, body])
    const using = [
      repeat('polls', 50, async () => unlessDone(await client.get(`/v1/instances/${agent}`))),
      repeat('creates', 10_000, async () => {
        const created = await client.post('/v1/instances', { name: 'short-lived' })
        return unlessDone(created) ?? unlessDone(await client.delete(`/v1/instances/${created.body.id}`))
      }),
      repeat('streams', 0, async () => {
        const body = { model: 'openclaw', input: '[[fake:words=20]] [[fake:chunk-delay=100]]' }
        let last = { name: null as string | null, data: '' }
        const events = client.stream(sessionPath(agent, 'streamed'), body, AbortSignal.timeout(minute))
        for await (const event of events) if (event.name !== null) last = event
        return last.name === 'response.completed' ? null : last
      }),
    ]
    const startedAt = performance.now()
    try {
      await writeOverlay('2')
      await cluster.kubectl('apply', '-k', folder)
      await rolledOut()
      const isReplaced = async () => (await podsOfChowder()).every(([name]) => !old.includes(name))
      await until('the end of the version before', isReplaced, 5 * minute)
    } finally {
      isOver = true
      await Promise.all(using)
    }
    console.info(`upgraded in ${Math.round((performance.now() - startedAt) / 1000)} s: ${JSON.stringify(done)}`)
    expect(failed).toEqual([])
    expect(Math.min(done.polls, done.creates, done.streams)).toBeGreaterThan(1)
    expect((await podsOfChowder()).map(([, used]) => used)).toEqual([`${image}:2`, `${image}:2`, `${image}:2`])
    const look = ['psql', '-h', '/run/postgresql', '-U', 'chowder', '-c', '\\d organizations']
    expect(await inChowder('exec', 'chowder-postgres-0', '--', ...look)).toContain('next')
    expect(await startOf(), 'no agent was restarted').toEqual(started)
    expect(await say(client, sessionPath(agent), 'and now?')).toContain('turns=3')
  })

  it('is removed without a trace', { timeout: 10 * minute }, async () => {
    await cluster.kubectl('delete', '-k', folder, '--ignore-not-found')
    await until('the end of its volumes', async () => (await cluster.kubectl('get', 'pv', '-o', 'name')) === '', minute)
    expect(await allObjects()).toEqual(before)
  })
})
