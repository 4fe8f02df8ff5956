import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Duplex } from 'node:stream'
import { json } from 'node:stream/consumers'
import { type WebSocket, WebSocketServer } from 'ws'
import type { Cluster } from '#sandbox/kubernetes/cluster.ts'
import { newSecret } from './canary/secrets.ts'
import { type FakePod, startFakeNode } from './fake-pods.ts'

/** An object of the API, as far as the fake looks into it. */
export interface Stored {
  apiVersion?: string
  kind?: string
  metadata: {
    name: string
    uid: string
    resourceVersion: string
    labels?: Record<string, string>
    annotations?: Record<string, string>
    ownerReferences?: { name: string; uid: string }[]
    deletionTimestamp?: string
    deletionGracePeriodSeconds?: number
  }
  // biome-ignore lint/suspicious/noExplicitAny: an object of any kind
  [part: string]: any
}

type Resource = 'pods' | 'services' | 'persistentvolumeclaims' | 'events' | 'statefulsets' | 'networkpolicies'

const groups: Record<string, string> = {
  '/api/v1': '',
  '/apis/apps/v1': 'apps',
  '/apis/networking.k8s.io/v1': 'networking.k8s.io',
}
const resourcesOf: Record<string, readonly Resource[]> = {
  '': ['pods', 'services', 'persistentvolumeclaims', 'events'],
  apps: ['statefulsets'],
  'networking.k8s.io': ['networkpolicies'],
}
const kinds: Record<Resource, string> = {
  pods: 'Pod',
  services: 'Service',
  persistentvolumeclaims: 'PersistentVolumeClaim',
  events: 'Event',
  statefulsets: 'StatefulSet',
  networkpolicies: 'NetworkPolicy',
}

/** A rule of a Role. */
export interface Rule {
  apiGroups: string[]
  resources: string[]
  verbs: string[]
}

/** Something that the API answers instead of what was asked. */
export interface ApiFault {
  code: number
  /** In seconds. */
  retryAfter?: number
  times: number
  /** The requests that it strikes, by method and path; all by default. */
  of?: RegExp
}

export interface FakeKubernetes {
  cluster: Cluster
  namespace: string
  /** The requests so far: method and path with its query. */
  requests: string[]
  objects(resource: Resource): Stored[]
  find(resource: Resource, name: string): Stored | undefined
  fail(fault: ApiFault): void
  /** What the caller may do from now on. */
  rules: readonly Rule[]
  /** Forgets the versions so far: watches end, and what goes on from an old version is answered 410. */
  forgetVersions(): void
  /** Why the next pods do not run: what their status is given. Null: they run. */
  podStatus: ((pod: Stored) => Record<string, unknown> | null) | null
  /** Why the StatefulSet controller creates no pods: the message of its event. */
  refusal: string | null
  /** Records an event about an object. */
  record(about: string, reason: string, message: string): void
  /** Ends all programs of a pod, as the kernel does when its memory is at its limit. */
  kill(name: string, reason: 'OOMKilled' | 'Error'): Promise<void>
  close(): Promise<void>
}

class Refusal extends Error {
  readonly code: number
  readonly reason: string
  constructor(code: number, reason: string, message: string) {
    super(message)
    this.code = code
    this.reason = reason
  }
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

/** Gives an object the fields of another one; a field that is null there is removed. Lists are replaced. */
function merged(live: unknown, change: unknown): unknown {
  if (!isObject(change)) return change
  const result = { ...(isObject(live) ? live : {}) }
  for (const [name, value] of Object.entries(change)) {
    if (value === null) delete result[name]
    else result[name] = merged(result[name], value)
  }
  return result
}

/** What a manager has applied before and no longer applies, as null: to be removed. */
function withdrawn(before: unknown, now: unknown): Record<string, unknown> {
  const result: Record<string, unknown> = {}
  if (!isObject(before) || !isObject(now)) return result
  for (const [name, value] of Object.entries(before)) {
    if (!(name in now)) result[name] = null
    else if (isObject(value)) result[name] = withdrawn(value, now[name])
  }
  return result
}

const sleepMs = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms))
const graceOf = (pod: Stored) => pod.spec.terminationGracePeriodSeconds ?? 30

const matches = (object: Stored, query: URLSearchParams): boolean => {
  const pairs = (text: string | null) =>
    (text ?? '')
      .split(',')
      .filter(Boolean)
      .map((pair) => pair.split('=') as [string, string])
  const fields: Record<string, string | undefined> = {
    'metadata.name': object.metadata.name,
    'involvedObject.name': object.involvedObject?.name,
  }
  return (
    pairs(query.get('labelSelector')).every(([name, value]) => object.metadata.labels?.[name] === value) &&
    pairs(query.get('fieldSelector')).every(([name, value]) => fields[name] === value)
  )
}

/** What a WebSocket's first byte says, of programs. */
const channels = { stdin: 0, stdout: 1, stderr: 2, status: 3, close: 255 } as const

const frame = (channel: number, bytes: Buffer | string) => Buffer.concat([Buffer.from([channel]), Buffer.from(bytes)])

/**
 * A stand-in, in this process, for the API of a Kubernetes cluster with one node: objects with versions in memory,
 * watches, server-side apply, programs and ports over WebSockets, and as much of the controllers as StatefulSets,
 * volumes and pods need. Pods are real processes in namespaces of their own. It allows what `rules` allow. `protocol` is
 * that of its WebSockets: v4 of servers before 1.30, v5 of later ones.
 */
export async function startFakeKubernetes({
  rules,
  protocol = 'v5.channel.k8s.io',
}: {
  rules: readonly Rule[]
  protocol?: 'v4.channel.k8s.io' | 'v5.channel.k8s.io'
}): Promise<FakeKubernetes> {
  const namespace = 'agents'
  const token = newSecret('password', '', '')
  const node = await startFakeNode()
  const store = new Map<string, Stored>()
  const applied = new Map<string, unknown>()
  const running = new Map<
    string,
    { pod: FakePod; agent: ReturnType<FakePod['start']> | null; killedFor: string | null }
  >()
  const faults: ApiFault[] = []
  const watchers = new Set<{ resource: Resource; query: URLSearchParams; response: ServerResponse }>()
  let history: { version: number; type: string; resource: Resource; object: Stored }[] = []
  let version = 100
  let isClosed = false

  const keyOf = (resource: Resource, name: string) => `${resource}/${name}`
  const find = (resource: Resource, name: string) => store.get(keyOf(resource, name))
  const all = (resource: Resource) =>
    [...store].filter(([key]) => key.startsWith(`${resource}/`)).map(([, object]) => object)

  function publish(type: 'ADDED' | 'MODIFIED' | 'DELETED', resource: Resource, object: Stored): void {
    const copy = structuredClone(object)
    history.push({ version, type, resource, object: copy })
    for (const watcher of watchers)
      if (watcher.resource === resource && matches(copy, watcher.query))
        watcher.response.write(`${JSON.stringify({ type, object: copy })}\n`)
  }

  function put(resource: Resource, object: Stored): Stored {
    const key = keyOf(resource, object.metadata.name)
    const type = store.has(key) ? 'MODIFIED' : 'ADDED'
    version += 1
    object.metadata.resourceVersion = String(version)
    store.set(key, object)
    publish(type, resource, object)
    if (!isClosed) setImmediate(control)
    return object
  }

  function drop(resource: Resource, name: string): void {
    const object = find(resource, name)
    if (!object) return
    store.delete(keyOf(resource, name))
    applied.delete(keyOf(resource, name))
    version += 1
    object.metadata.resourceVersion = String(version)
    publish('DELETED', resource, object)
    if (!isClosed) setImmediate(control)
  }

  function add(resource: Resource, wanted: Record<string, unknown>): Stored {
    const { metadata, ...rest } = structuredClone(wanted) as unknown as Stored
    if (find(resource, metadata.name))
      throw new Refusal(409, 'AlreadyExists', `${resource} "${metadata.name}" already exists`)
    const created = { ...metadata, namespace, uid: randomUUID(), creationTimestamp: new Date().toISOString() }
    return put(resource, { ...rest, metadata: created } as Stored)
  }

  const update = (resource: Resource, name: string, change: Record<string, unknown>): void => {
    const object = find(resource, name)
    if (object) put(resource, merged(object, change) as Stored)
  }

  function record(about: string, reason: string, message: string): void {
    const lastTimestamp = new Date().toISOString()
    const metadata = { name: `${about}.${randomUUID().slice(0, 8)}` }
    add('events', { metadata, involvedObject: { name: about }, reason, message, lastTimestamp })
  }

  /** The controllers: bring the world nearer to what the objects want. */
  function control(): void {
    if (isClosed) return
    for (const set of all('statefulsets')) {
      const name = `${set.metadata.name}-0`
      const pod = find('pods', name)
      if (set.spec.replicas > 0 && !pod) {
        if (fake.refusal !== null) {
          const known = all('events').some(({ involvedObject }) => involvedObject?.name === set.metadata.name)
          if (!known) record(set.metadata.name, 'FailedCreate', fake.refusal)
          continue
        }
        const { metadata, spec } = structuredClone(set.spec.template)
        const owner = { ownerReferences: [{ kind: 'StatefulSet', name: set.metadata.name, uid: set.metadata.uid }] }
        add('pods', {
          apiVersion: 'v1',
          kind: 'Pod',
          metadata: { ...metadata, name, ...owner },
          spec: { restartPolicy: 'Always', ...spec },
        })
      }
      if (pod && !pod.metadata.deletionTimestamp && (set.spec.replicas === 0 || pod.status?.phase === 'Failed'))
        removePod(pod, graceOf(pod))
    }
    for (const pod of all('pods')) {
      const owner = pod.metadata.ownerReferences?.[0]
      const isOrphan = owner && find('statefulsets', owner.name)?.metadata.uid !== owner.uid
      if (isOrphan && !pod.metadata.deletionTimestamp) removePod(pod, graceOf(pod))
      else if (!pod.status) void runWhileThere(pod)
    }
    for (const claim of all('persistentvolumeclaims')) {
      if (claim.metadata.deletionTimestamp && !isUsed(claim.metadata.name)) {
        drop('persistentvolumeclaims', claim.metadata.name)
        void node.removeVolume(claim.metadata.uid).catch(() => {}) // a pod that was starting may still write to it
      } else if (!claim.status) update('persistentvolumeclaims', claim.metadata.name, { status: { phase: 'Bound' } })
    }
  }

  const claimOf = (pod: Stored): string | undefined =>
    pod.spec.volumes?.find((volume: Stored) => volume.persistentVolumeClaim)?.persistentVolumeClaim.claimName
  const isUsed = (claim: string) => all('pods').some((pod) => claimOf(pod) === claim)

  const agentStatus = (pod: Stored, status: Record<string, unknown>) => [
    {
      name: pod.spec.containers[0].name,
      image: pod.spec.containers[0].image,
      restartCount: 0,
      lastState: {},
      ...status,
    },
  ]

  const isThere = ({ metadata: { name, uid } }: Stored) => !isClosed && find('pods', name)?.metadata.uid === uid

  /** A pod that is removed while it starts loses its volume, and fails. */
  async function runWhileThere(pod: Stored): Promise<void> {
    await runPod(pod).catch((error) => {
      if (isThere(pod)) throw error
    })
  }

  async function runPod(pod: Stored): Promise<void> {
    const { name, uid } = pod.metadata
    const isSame = () => isThere(pod)
    const other = fake.podStatus?.(pod)
    const waiting = {
      phase: 'Pending',
      containerStatuses: agentStatus(pod, { state: { waiting: { reason: 'ContainerCreating' } } }),
    }
    update('pods', name, { status: { ...waiting, ...other } })
    if (other) return
    const claim = find('persistentvolumeclaims', claimOf(pod) ?? '')
    if (!claim)
      return update('pods', name, {
        status: { conditions: [{ type: 'PodScheduled', status: 'False', message: 'persistentvolumeclaim not found' }] },
      })
    const inside = await node.run(await node.volume(claim.metadata.uid))
    if (!isSame()) return inside.close()
    const entry = { pod: inside, agent: null as ReturnType<FakePod['start']> | null, killedFor: null as string | null }
    running.set(uid, entry)
    const { command, env = [] } = pod.spec.containers[0]
    const variables = Object.fromEntries(
      env.map((variable: { name: string; value: string }) => [variable.name, variable.value]),
    )
    let lastState = {}
    for (let restartCount = 0; isSame(); restartCount += 1) {
      const agent = inside.start(command, variables)
      entry.agent = agent
      agent.stdout.resume()
      agent.stderr.resume()
      await inside.entered(agent)
      if (!isSame()) return
      const startedAt = new Date().toISOString()
      const state = { state: { running: { startedAt } }, lastState, restartCount }
      const conditions = [{ type: 'Ready', status: restartCount === 0 ? 'True' : 'False' }]
      update('pods', name, { status: { phase: 'Running', conditions, containerStatuses: agentStatus(pod, state) } })
      const exitCode = await inside.codeOf(agent)
      await inside.killAll()
      if (!isSame()) return
      const reason = entry.killedFor ?? (exitCode === 0 ? 'Completed' : 'Error')
      entry.killedFor = null
      const terminated = { exitCode, reason, startedAt, finishedAt: new Date().toISOString() }
      const ended = { state: { terminated }, lastState, restartCount }
      const isOver = pod.spec.restartPolicy === 'Never'
      const phase = isOver ? (exitCode === 0 ? 'Succeeded' : 'Failed') : 'Running'
      update('pods', name, { status: { phase, containerStatuses: agentStatus(pod, ended) } })
      if (isOver || find('pods', name)?.metadata.deletionTimestamp) return
      lastState = { terminated }
    }
  }

  /** As the API and the kubelet do: a grace time of 0 forgets the pod at once, a shorter one than before counts. */
  function removePod(pod: Stored, grace: number): void {
    const { name, uid } = pod.metadata
    const known = pod.metadata.deletionGracePeriodSeconds
    if (known !== undefined && known <= grace) return
    const deletionTimestamp = new Date(Date.now() + grace * 1000).toISOString()
    update('pods', name, { metadata: { deletionTimestamp, deletionGracePeriodSeconds: grace } })
    const entry = running.get(uid)
    const end = async () => {
      const isThis = () => find('pods', name)?.metadata.uid === uid
      if (!isThis()) return
      running.delete(uid)
      await entry?.pod.close()
      if (isThis()) drop('pods', name)
    }
    if (!entry || grace === 0) return void end()
    const { agent } = entry
    if (!agent) return void end()
    void entry.pod.kill(agent, 'SIGTERM')
    void Promise.race([entry.pod.codeOf(agent), sleepMs(grace * 1000)]).then(end)
  }

  function check(group: string, resource: string, verb: string): void {
    const isAllowed = fake.rules.some(
      (rule) => rule.apiGroups.includes(group) && rule.resources.includes(resource) && rule.verbs.includes(verb),
    )
    if (!isAllowed)
      throw new Refusal(
        403,
        'Forbidden',
        `User "chowder" cannot ${verb} resource "${resource}" in API group "${group}" in the namespace "${namespace}"`,
      )
  }

  function list(resource: Resource, query: URLSearchParams) {
    const found = all(resource).filter((object) => matches(object, query))
    const [first, limit] = [Number(query.get('continue') ?? 0), Number(query.get('limit') ?? found.length)]
    const rest = first + limit < found.length ? { continue: String(first + limit) } : {}
    return {
      kind: `${kinds[resource]}List`,
      metadata: { resourceVersion: String(version), ...rest },
      items: found.slice(first, first + limit),
    }
  }

  function watch(resource: Resource, query: URLSearchParams, response: ServerResponse): void {
    const from = Number(query.get('resourceVersion') ?? 0)
    const oldest = history[0]?.version ?? version + 1
    response.writeHead(200, { 'content-type': 'application/json' })
    if (from + 1 < oldest && from < version) {
      const object = {
        kind: 'Status',
        status: 'Failure',
        reason: 'Expired',
        code: 410,
        message: `too old resource version: ${from}`,
      }
      return void response.end(`${JSON.stringify({ type: 'ERROR', object })}\n`)
    }
    response.flushHeaders()
    for (const past of history)
      if (past.version > from && past.resource === resource && matches(past.object, query))
        response.write(`${JSON.stringify({ type: past.type, object: past.object })}\n`)
    const watcher = { resource, query, response }
    watchers.add(watcher)
    const timer = setTimeout(() => response.end(), Number(query.get('timeoutSeconds') ?? 300) * 1000)
    response.on('error', () => {}) // of a version that is told while the response ends
    response.on('close', () => {
      clearTimeout(timer)
      watchers.delete(watcher)
    })
  }

  function apply(resource: Resource, name: string, body: Record<string, unknown>, query: URLSearchParams): Stored {
    const manager = query.get('fieldManager')
    if (!manager) throw new Refusal(400, 'BadRequest', 'fieldManager is required for apply patch')
    const key = keyOf(resource, name)
    const live = find(resource, name)
    const change = merged(withdrawn(applied.get(key), body), body) as Record<string, unknown>
    const result = live
      ? put(resource, merged(live, { ...change, metadata: merged(change.metadata, { name }) }) as Stored)
      : add(resource, body)
    applied.set(key, structuredClone(body))
    return result
  }

  /** Answers a request, but for watches. */
  function act(
    method: string,
    resource: Resource,
    name: string,
    query: URLSearchParams,
    type: string,
    body: Record<string, unknown>,
  ): unknown {
    if (method === 'GET' && name === '') return list(resource, query)
    if (method === 'POST') return add(resource, body)
    const object = find(resource, name)
    if (method === 'PATCH' && type === 'application/apply-patch+yaml') return apply(resource, name, body, query)
    if (!object) throw new Refusal(404, 'NotFound', `${resource} "${name}" not found`)
    if (method === 'GET') return object
    if (method === 'PATCH') {
      const wanted = (body.metadata as Stored['metadata'] | undefined)?.resourceVersion
      if (wanted !== undefined && wanted !== object.metadata.resourceVersion)
        throw new Refusal(
          409,
          'Conflict',
          'the object has been modified; please apply your changes to the latest version',
        )
      return put(resource, merged(object, body) as Stored)
    }
    const uid = (body.preconditions as { uid?: string } | undefined)?.uid
    if (uid !== undefined && uid !== object.metadata.uid)
      throw new Refusal(409, 'Conflict', 'the UID in the precondition is another one')
    if (method !== 'DELETE') throw new Refusal(405, 'MethodNotAllowed', 'the server does not allow this method')
    if (resource === 'pods') removePod(object, Number(body.gracePeriodSeconds ?? graceOf(object)))
    else if (resource !== 'persistentvolumeclaims') drop(resource, name)
    else if (!object.metadata.deletionTimestamp)
      update(resource, name, { metadata: { deletionTimestamp: new Date().toISOString() } })
    return { kind: 'Status', status: 'Success' }
  }

  const verbs: Record<string, string> = { POST: 'create', PATCH: 'patch', DELETE: 'delete', PUT: 'update' }

  function placeOf(url: URL) {
    const [, root = '', inNamespace, resource = '', name = '', sub = ''] =
      /^(\/api\/v1|\/apis\/[^/]+\/v1)\/namespaces\/([^/]+)\/([^/]+)(?:\/([^/]+))?(?:\/([^/]+))?$/.exec(url.pathname) ??
      []
    const group = groups[root]
    if (group === undefined || !resourcesOf[group]?.includes(resource as Resource))
      throw new Refusal(404, 'NotFound', 'the server could not find the requested resource')
    if (inNamespace !== namespace) throw new Refusal(403, 'Forbidden', `no access to the namespace "${inNamespace}"`)
    return { group, resource: resource as Resource, name, sub }
  }

  function refuse(response: ServerResponse, { code, reason, message }: Refusal, retryAfter?: number): void {
    const headers = {
      'content-type': 'application/json',
      ...(retryAfter !== undefined && { 'retry-after': String(retryAfter) }),
    }
    response
      .writeHead(code, headers)
      .end(JSON.stringify({ kind: 'Status', apiVersion: 'v1', status: 'Failure', reason, code, message }))
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', 'http://api')
    fake.requests.push(`${request.method} ${request.url}`)
    const fault = faults.find(({ of, times }) => times > 0 && (!of || of.test(`${request.method} ${url.pathname}`)))
    if (fault) {
      fault.times -= 1
      return refuse(
        response,
        new Refusal(fault.code, 'TooManyRequests', 'the server has asked to try again later'),
        fault.retryAfter,
      )
    }
    if (request.headers.authorization !== `Bearer ${token}`) throw new Refusal(401, 'Unauthorized', 'Unauthorized')
    const { group, resource, name } = placeOf(url)
    const { method = 'GET' } = request
    const isWatch = url.searchParams.get('watch') === 'true'
    check(group, resource, isWatch ? 'watch' : (verbs[method] ?? (name === '' ? 'list' : 'get')))
    if (isWatch) return watch(resource, url.searchParams, response)
    const body = method !== 'GET' ? ((await json(request)) as Record<string, unknown>) : {}
    const answered = act(method, resource, name, url.searchParams, request.headers['content-type'] ?? '', body)
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(answered))
  }

  const server = createServer((request, response) => {
    answer(request, response).catch((error) => {
      if (error instanceof Refusal) refuse(response, error)
      else refuse(response, new Refusal(500, 'InternalError', String(error)))
    })
  })
  const sockets = new WebSocketServer({
    noServer: true,
    handleProtocols: (offered) => (offered.has(protocol) ? protocol : false),
  })

  function runProgram(socket: WebSocket, pod: FakePod, argv: string[], env: Record<string, string>): void {
    const child = pod.start(argv, env, '/agent')
    child.stdin.on('error', () => {})
    child.stdout.on('data', (bytes) => socket.send(frame(channels.stdout, bytes)))
    child.stderr.on('data', (bytes) => socket.send(frame(channels.stderr, bytes)))
    socket.on('message', (bytes: Buffer) => {
      if (bytes[0] === channels.stdin) child.stdin.write(bytes.subarray(1))
      if (bytes[0] === channels.close && protocol === 'v5.channel.k8s.io') child.stdin.end()
    })
    socket.on('close', () => child.stdin.end())
    child.on('close', async () => {
      const code = await pod.codeOf(child)
      const failure = {
        status: 'Failure',
        reason: 'NonZeroExitCode',
        message: `command terminated with non-zero exit code: exit code ${code}`,
        details: { causes: [{ reason: 'ExitCode', message: String(code) }] },
      }
      socket.send(frame(channels.status, JSON.stringify(code === 0 ? { status: 'Success' } : failure)))
      socket.close()
    })
  }

  function forwardPort(socket: WebSocket, pod: FakePod, port: number): void {
    const prefix = Buffer.alloc(2)
    prefix.writeUInt16LE(port)
    for (const channel of [0, 1]) socket.send(frame(channel, prefix))
    const child = pod.connect(port)
    child.stdin.on('error', () => {})
    child.stdout.on('data', (bytes) => socket.send(frame(0, bytes)))
    socket.on('message', (bytes: Buffer) => bytes[0] === 0 && child.stdin.write(bytes.subarray(1)))
    socket.on('close', () => child.kill())
    child.on('close', (code) => {
      if (code !== 0) socket.send(frame(1, `dial tcp4 127.0.0.1:${port}: connect: connection refused`))
      socket.close()
    })
  }

  server.on('upgrade', (request: IncomingMessage, connection: Duplex, head: Buffer) => {
    connection.on('error', () => {}) // of a client that has left
    const end = (code: number): unknown =>
      connection.end(`HTTP/1.1 ${code} Refused\r\ncontent-length: 0\r\nconnection: close\r\n\r\n`)
    try {
      const url = new URL(request.url ?? '/', 'http://api')
      fake.requests.push(`WS ${url.pathname}`)
      if (request.headers.authorization !== `Bearer ${token}`) return void end(401)
      const { group, resource, name, sub } = placeOf(url)
      // Kubernetes asks for `get` where a WebSocket is opened, and since 1.35 for `create` as well.
      for (const verb of ['get', 'create']) check(group, `${resource}/${sub}`, verb)
      const pod = find('pods', name)
      const entry = pod && running.get(pod.metadata.uid)
      if (!pod) return void end(404)
      if (!entry?.agent || entry.agent.exitCode !== null) return void end(sub === 'exec' ? 500 : 404)
      const { env = [] } = pod.spec.containers[0]
      const variables = Object.fromEntries(env.map((each: { name: string; value: string }) => [each.name, each.value]))
      sockets.handleUpgrade(request, connection, head, (socket) => {
        if (sub === 'exec') runProgram(socket, entry.pod, url.searchParams.getAll('command'), variables)
        else forwardPort(socket, entry.pod, Number(url.searchParams.get('ports')))
      })
    } catch (error) {
      end(error instanceof Refusal ? error.code : 500)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')

  const cluster = {
    server: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    access: async () => ({ tls: {}, headers: { authorization: `Bearer ${token}` } }),
  }

  const fake: FakeKubernetes = {
    cluster,
    namespace,
    requests: [],
    objects: all,
    find,
    fail: (fault) => void faults.push(fault),
    rules,
    forgetVersions() {
      history = []
      version += 1
      for (const { response } of watchers) response.end()
    },
    podStatus: null,
    refusal: null,
    record,
    async kill(name, reason) {
      const entry = running.get(find('pods', name)?.metadata.uid ?? '')
      if (!entry) return
      entry.killedFor = reason
      await entry.pod.killAll()
    },
    async close() {
      isClosed = true
      for (const { response } of watchers) response.end()
      for (const socket of sockets.clients) socket.terminate()
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
      await node.close()
    },
  }
  return fake
}
