import { randomUUID } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Readable } from 'node:stream'
import { buffer, json } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { isObject } from '#openclaw/json.ts'
import { type Activity, SandboxAbsentError, SandboxPathError } from '#sandbox/driver.ts'
import type { Loop } from './fake-driver.ts'
import { type FakeGateway, startFakeGateway } from './fake-gateway.ts'
import { type MemoryFolder, memoryFiles } from './memory-files.ts'

export type CloudCall =
  | 'create'
  | 'start'
  | 'stop'
  | 'destroy'
  | 'observe'
  | 'activity'
  | 'list'
  | 'exec'
  | 'logs'
  | 'files'

/**
 * `lost reply`: done, and the connection is reset. `slow`: done after a while, whether the caller still waits or not.
 * `hang`: not done, and never answered. The others are not done, and answered so.
 */
export const cloudFaultKinds = [
  'lost reply',
  'too many requests',
  'server error',
  'hang',
  'wrong 404',
  'out of capacity',
  'slow',
] as const

export interface CloudFault {
  kind: (typeof cloudFaultKinds)[number]
  /** Which calls it strikes; any of them by default. */
  calls?: readonly CloudCall[]
  /** How many calls it strikes; one by default. */
  times?: number
  /** How long a `slow` call takes, in ms. */
  slowMs?: number
}

/** Something that became of a sandbox, in the order in which it did. */
export interface CloudEvent {
  /** Unix time in ms. */
  at: number
  id: string
  what: 'created' | 'started' | 'stopped' | 'died' | 'destroyed'
}

interface CloudSandbox {
  sandboxId: string
  labels: Record<string, string>
  gateway: FakeGateway | null
  loop: Loop
  activity: Activity
  exit: { code: number | null; oom: boolean } | null
  files: MemoryFolder
}

export interface FakeCloud {
  url: string
  /** Everything that ever became of a sandbox, also for a moment. */
  history: CloudEvent[]
  /** Two callers that were changing one sandbox at the same time. */
  overlaps: { id: string; callers: [string, string] }[]
  /** How many calls each kind of fault has struck. */
  struck: Map<CloudFault['kind'], number>
  /** The tokens that gateways were ever started with. */
  tokens: Set<string>
  sandboxes(): { id: string; isRunning: boolean; isHealthy: boolean }[]
  /** The configuration that a running gateway has; null when none runs. */
  config(id: string): Record<string, unknown> | null
  fail(fault: CloudFault): void
  /** Ends all faults of the platform itself, and answers what hangs. */
  heal(): void
  /** The gateway ends by itself; no-op when it does not run. */
  die(id: string, exit?: { code: number | null; oom: boolean }): Promise<void>
  /**
   * The agent answers in place of its gateway, its turns like this and its calls alike, until the returned function is
   * called; no-op when the gateway does not run.
   */
  takeOver(id: string, turns: 'items' | 'events' | 'nonsense'): () => void
  /** The gateway runs on and never answers again, until it is started anew; no-op when it does not run. */
  hang(id: string): void
  /** What the event loop of a running gateway does from now on, until it is started anew. */
  setLoop(id: string, loop: Loop): void
  close(): Promise<void>
}

/**
 * Where a gateway's configuration is in its sandbox, and OpenClaw's own exit code for one that it cannot start with.
 */
const configFile = 'state/openclaw.json'
const secretsFile = 'state/secrets.json'
const configurationExit = 78

const changing = new Set<CloudCall>(['create', 'start', 'stop', 'destroy'])
const statuses = { 'too many requests': 429, 'server error': 503, 'wrong 404': 404, 'out of capacity': 507 } as const

/**
 * A stand-in, in this process, for a vendor's sandbox platform: an HTTP server whose sandboxes are entries in memory,
 * and a fake gateway for each that runs. Names are unique on it, as on Docker and Kubernetes: whoever creates a sandbox
 * of a name that is there finds that one. What it does to one sandbox it does one after the other. `bootMs` is how long
 * a gateway takes to be ready; with `isLenient` one also starts without the configuration that it needs.
 */
export async function startFakeCloud({ bootMs = 0, isLenient = false } = {}): Promise<FakeCloud> {
  const sandboxes = new Map<string, CloudSandbox>()
  const faults: Required<CloudFault>[] = []
  const hanging = new Set<ServerResponse>()
  /** The last thing done to a sandbox, for the next to wait for. */
  const turns = new Map<string, Promise<unknown>>()
  /** Who is changing a sandbox right now. */
  const callers = new Map<string, Map<ServerResponse, string>>()

  const record = (id: string, what: CloudEvent['what']) => cloud.history.push({ at: Date.now(), id, what })
  const existing = (id: string): CloudSandbox => {
    const sandbox = sandboxes.get(id)
    if (!sandbox) throw new SandboxAbsentError(`there is no sandbox ${id}`)
    return sandbox
  }

  function inTurn<T>(id: string, act: () => Promise<T>): Promise<T> {
    const done = (turns.get(id) ?? Promise.resolve()).then(act)
    turns.set(
      id,
      done.catch(() => {}),
    )
    return done
  }

  async function endGateway(sandbox: CloudSandbox, exit: { code: number | null; oom: boolean }): Promise<void> {
    const { gateway } = sandbox
    if (!gateway) return
    sandbox.gateway = null
    sandbox.exit = exit
    if (sandbox.files.has(configFile))
      sandbox.files.set(configFile, { content: Buffer.from(JSON.stringify(gateway.config)), mode: 0o600 })
    await gateway.close()
  }

  async function startGateway(id: string): Promise<void> {
    const sandbox = existing(id)
    if (sandbox.gateway) return
    const config = parsed(sandbox.files.get(configFile)?.content)
    const token = tokenIn(parsed(sandbox.files.get(secretsFile)?.content))
    record(id, 'started')
    sandbox.exit = null
    if (!isLenient && (config === null || token === null)) {
      sandbox.exit = { code: configurationExit, oom: false }
      record(id, 'died')
      return
    }
    if (token !== null) cloud.tokens.add(token)
    const gateway = await startFakeGateway({ ...(token !== null && { token }), config: config ?? {} })
    sandbox.gateway = gateway
    sandbox.loop = 'turns'
    if (bootMs === 0) return
    gateway.behaviour.health = 'starting'
    setTimeout(() => {
      if (gateway.behaviour.health === 'starting') gateway.behaviour.health = 'ok'
    }, bootMs).unref()
  }

  const shown = (id: string) => {
    const { sandboxId, gateway, exit, labels } = existing(id)
    return {
      id,
      sandboxId,
      labels,
      state: gateway ? 'running' : 'stopped',
      endpoint: gateway?.endpoint ?? null,
      paths: { node: 'node', release: '/release', home: `/sandboxes/${id}`, port: 18_789 },
      ...(exit && { exit }),
    }
  }

  /** Does what was asked, and answers it. */
  async function act(call: CloudCall, id: string, rest: string, body: Record<string, unknown>): Promise<unknown> {
    if (call === 'observe') return shown(id)
    if (call === 'activity') return { activity: activityOf(existing(id)) }
    if (call === 'logs') return { text: existing(id) && 'starting\n' }
    if (call === 'exec') return { exitCode: existing(id).gateway ? 0 : 1, stdout: '', stderr: '' }
    if (call === 'files') return fileCall(rest, body, () => existing(id).files)
    return inTurn(id, async () => {
      if (call === 'create') {
        if (sandboxes.has(id)) return shown(id)
        record(id, 'created')
        const labels = isObject(body.labels) ? (body.labels as Record<string, string>) : {}
        const activity = { switches: 0, cpuSeconds: 0 }
        const loop = 'turns'
        const sandboxId = `cloud-${randomUUID()}`
        sandboxes.set(id, { sandboxId, labels, gateway: null, loop, activity, exit: null, files: new Map() })
      }
      if (call === 'start') await startGateway(id)
      if (call === 'stop') {
        const sandbox = existing(id)
        if (sandbox.gateway) record(id, 'stopped')
        await endGateway(sandbox, { code: 0, oom: false })
      }
      if (call === 'destroy') {
        const sandbox = existing(id)
        if (sandbox.gateway) record(id, 'stopped')
        record(id, 'destroyed')
        sandboxes.delete(id)
        await endGateway(sandbox, { code: 0, oom: false })
        return {}
      }
      return shown(id)
    })
  }

  function nextFault(call: CloudCall): Required<CloudFault> | undefined {
    const fault = faults.find(({ calls, times }) => times > 0 && (calls.length === 0 || calls.includes(call)))
    if (!fault) return undefined
    fault.times -= 1
    cloud.struck.set(fault.kind, (cloud.struck.get(fault.kind) ?? 0) + 1)
    return fault
  }

  function noteCaller(call: CloudCall, id: string, caller: string, response: ServerResponse): void {
    if (!changing.has(call)) return
    const others = callers.get(id) ?? new Map<ServerResponse, string>()
    callers.set(id, others)
    for (const other of others.values()) if (other !== caller) cloud.overlaps.push({ id, callers: [other, caller] })
    others.set(response, caller)
    response.once('close', () => {
      others.delete(response)
      if (others.size === 0) callers.delete(id)
    })
  }

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const asked = readCall(request)
    if (!asked) return void response.writeHead(405).end()
    const { call, id, rest } = asked
    noteCaller(call, id, String(request.headers['x-caller'] ?? ''), response)
    const body = request.method === 'GET' ? {} : ((await json(request)) as Record<string, unknown>)
    const fault = nextFault(call)
    if (fault?.kind === 'hang') {
      hanging.add(response)
      response.once('close', () => hanging.delete(response))
      return
    }
    if (fault && fault.kind !== 'lost reply' && fault.kind !== 'slow') {
      return sendJson(response, statuses[fault.kind], { error: fault.kind })
    }
    if (fault?.kind === 'slow') await sleep(fault.slowMs)
    try {
      const answered = call === 'list' ? [...sandboxes.keys()].map(shown) : await act(call, id, rest, body)
      if (fault?.kind === 'lost reply') response.destroy()
      else if (Array.isArray(answered)) sendLines(response, answered)
      else sendJson(response, 200, answered)
    } catch (error) {
      if (error instanceof SandboxAbsentError) return sendJson(response, 404, { error: error.message })
      if (!(error instanceof SandboxPathError)) throw error
      sendJson(response, 422, { error: error.message, fault: error.fault })
    }
  }

  const server = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy())
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))

  const cloud: FakeCloud = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    history: [],
    overlaps: [],
    struck: new Map(),
    tokens: new Set(),
    sandboxes: () =>
      Array.from(sandboxes, ([id, { gateway }]) => ({
        id,
        isRunning: gateway !== null,
        isHealthy: gateway?.behaviour.health === 'ok',
      })),
    config: (id) => sandboxes.get(id)?.gateway?.config ?? null,
    fail: (fault) => void faults.push({ calls: [], times: 1, slowMs: 1000, ...fault }),
    heal() {
      faults.length = 0
      for (const response of hanging) response.destroy()
    },
    die: (id, exit = { code: 1, oom: false }) =>
      inTurn(id, async () => {
        const sandbox = sandboxes.get(id)
        if (!sandbox?.gateway) return
        record(id, 'died')
        await endGateway(sandbox, exit)
      }),
    setLoop(id, loop) {
      existing(id).loop = loop
    },
    takeOver(id, turns) {
      const behaviour = sandboxes.get(id)?.gateway?.behaviour
      if (behaviour?.health !== 'ok') return () => {}
      behaviour.turns = turns
      behaviour.calls = turns === 'nonsense' ? turns : 'events'
      return () => {
        behaviour.calls = 'ok'
        if (behaviour.turns === turns) behaviour.turns = 'ok'
      }
    },
    hang(id) {
      const behaviour = sandboxes.get(id)?.gateway?.behaviour
      if (!behaviour) return
      cloud.setLoop(id, 'hangs')
      behaviour.health = 'hung'
      behaviour.turns = 'hung'
      behaviour.onCall = () => new Promise(() => {})
    },
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
      for (const { gateway } of sandboxes.values()) await gateway?.close()
    },
  }
  return cloud
}

function activityOf({ gateway, loop, activity }: CloudSandbox): Activity | null {
  if (loop === 'turns') activity.switches += 50
  if (loop === 'computes') activity.cpuSeconds += 1
  return gateway && activity
}

const parsed = (content: Buffer | null | undefined): Record<string, unknown> | null => {
  try {
    const value: unknown = JSON.parse(content?.toString() ?? '')
    return isObject(value) ? value : null
  } catch {
    return null
  }
}

const tokenIn = (secrets: Record<string, unknown> | null): string | null =>
  typeof secrets?.gatewayToken === 'string' ? secrets.gatewayToken : null

/** Which call a request is, by its method and path. */
function readCall({ method, url = '/' }: IncomingMessage): { call: CloudCall; id: string; rest: string } | null {
  const [root, id = '', action = '', rest = ''] = (url.split('?')[0] ?? '').split('/').slice(1)
  if (root !== 'sandboxes') return null
  if (method === 'GET' && id === '') return { call: 'list', id, rest }
  if (method === 'GET') return { call: action === 'logs' || action === 'activity' ? action : 'observe', id, rest }
  if (method === 'PUT') return { call: 'create', id, rest }
  if (method === 'DELETE') return { call: 'destroy', id, rest }
  if (action === 'start' || action === 'stop' || action === 'exec' || action === 'files')
    return { call: action, id, rest }
  return null
}

/** A line of JSON for each value. */
const sendLines = (response: ServerResponse, values: readonly unknown[]) =>
  response
    .writeHead(200, { 'content-type': 'application/x-ndjson' })
    .end(values.map((value) => `${JSON.stringify(value)}\n`).join(''))

const sendJson = (response: ServerResponse, status: number, body: unknown) =>
  void response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))

/** The files' calls, with contents in base64. */
async function fileCall(method: string, body: Record<string, unknown>, find: () => MemoryFolder): Promise<unknown> {
  const files = memoryFiles(find)
  const { signal } = new AbortController()
  const { path, to, options, content } = body as { path: string; to: string; options: never; content: string }
  if (method === 'list') return files.list(path, options, signal)
  if (method === 'stat') return { stat: await files.stat(path, signal) }
  if (method === 'mkdir') return { made: await files.mkdir(path, signal) }
  if (method === 'move') return { moved: await files.move(path, to, options, signal) }
  if (method === 'remove') return { removed: await files.remove(path, options, signal) }
  if (method === 'write') {
    await files.write(path, Readable.from([Buffer.from(content, 'base64')]), options, signal)
    return {}
  }
  const file = await files.read(path, options, signal)
  return { file: file && { ...file, content: (await buffer(file.content())).toString('base64') } }
}
