/**
 * A stand-in for a platform with any number of sandboxes, in a process of its own: the same HTTP API as the fake cloud of
 * the tests, with what is needed to keep a hundred thousand of them. All sandboxes have one gateway, which each reaches by
 * a link of its own: the link leads to a gateway that starts, then to one that runs, and ends with the sandbox's gateway.
 */
import { createHash } from 'node:crypto'
import { mkdir, rename, rm, symlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { json } from 'node:stream/consumers'
import { pipeline } from 'node:stream/promises'
import pMap from 'p-map'
import { answerMessages, listen } from '../bench/program.ts'
import { startFakeGateway } from '../test/support/fake-gateway.ts'
import { present } from '../test/support/present.ts'
import { endsWithRegion, regions } from './day.ts'

/** How long a gateway takes to be ready: what a real one takes with its compile cache, give or take a third. */
const bootMs = { least: 6000, most: 11_000 }
const linksAtOnce = 64
const forgetEveryMs = 5000
const linesAtOnce = 200

/** What the simulation tells the platform. */
export type PlatformMessage =
  /** Where links are made. Answered with the port. */
  | { kind: 'open'; folder: string }
  /** Sandboxes that run from now on. */
  | { kind: 'run'; ids: string[] }
  /** So many gateways, chosen at random, end by themselves. */
  | { kind: 'end'; count: number }
  /** One region goes away, or comes back. */
  | { kind: 'region'; isAway: boolean }

interface Sandbox {
  isRunning: boolean
  isInRegion: boolean
  boot: NodeJS.Timeout | null
}

const sandboxes = new Map<string, Sandbox>()
let folder = ''
let isAway = false

const linkOf = (id: string) => join(folder, id)
const isInRegion = (id: string) => present(createHash('sha256').update(id).digest()[0]) % regions === 0

/** Replaces the link at once, if there is one. */
async function link(id: string, gateway: 'starting' | 'ready'): Promise<void> {
  const next = `${linkOf(id)}.next`
  await symlink(join(folder, gateway), next)
  await rename(next, linkOf(id))
}

async function endGateway(id: string, sandbox: Sandbox): Promise<void> {
  if (sandbox.boot) clearTimeout(sandbox.boot)
  sandbox.boot = null
  sandbox.isRunning = false
  await rm(linkOf(id), { force: true })
}

async function startGateway(id: string, sandbox: Sandbox): Promise<void> {
  if (sandbox.isRunning) return
  sandbox.isRunning = true
  await link(id, 'starting')
  const ms = bootMs.least + Math.random() * (bootMs.most - bootMs.least)
  sandbox.boot = setTimeout(() => {
    sandbox.boot = null
    if (sandbox.isRunning) void link(id, 'ready')
  }, ms)
}

const shown = (id: string, { isRunning }: Sandbox) => ({
  id,
  sandboxId: `simulated-${id}`,
  state: isRunning ? 'running' : 'stopped',
  endpoint: isRunning ? { kind: 'unix', path: linkOf(id) } : null,
  paths: { node: 'node', release: '/release', home: `/sandboxes/${id}`, port: 18_789 },
})

/** Files are kept nowhere: they are written before each start, and nobody reads them here. */
const files: Record<string, unknown> = {
  list: { entries: [], isWhole: true },
  stat: { stat: null },
  read: { file: null },
  remove: { removed: false },
}

/** Returns the status and body of an answer. */
async function act(method: string, id: string, action: string, rest: string): Promise<[number, unknown]> {
  if (isAway && isInRegion(id)) return [503, { error: 'the region is away' }]
  const sandbox = sandboxes.get(id)
  if (method === 'PUT' && !sandbox) {
    const created = { isRunning: false, isInRegion: isInRegion(id), boot: null }
    sandboxes.set(id, created)
    return [200, shown(id, created)]
  }
  if (!sandbox) return [404, { error: `there is no sandbox ${id}` }]
  if (method === 'DELETE') {
    await endGateway(id, sandbox)
    sandboxes.delete(id)
    return [200, {}]
  }
  if (action === 'start') await startGateway(id, sandbox)
  if (action === 'stop') await endGateway(id, sandbox)
  if (action === 'files') return [200, files[rest] ?? {}]
  if (action === 'exec') return [200, { exitCode: 0, stdout: '', stderr: '' }]
  if (action === 'logs') return [200, { text: 'starting\n' }]
  if (action === 'activity')
    return [200, { activity: sandbox.isRunning ? { switches: Date.now(), cpuSeconds: 0 } : null }]
  return [200, shown(id, sandbox)]
}

/** The list of all sandboxes, a line for each, in pieces. */
function* pieces(): Generator<string> {
  let lines: string[] = []
  for (const [id, sandbox] of sandboxes) {
    lines.push(`${JSON.stringify(shown(id, sandbox))}\n`)
    if (lines.length < linesAtOnce) continue
    yield lines.join('')
    lines = []
  }
  yield lines.join('')
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const [, , id = '', action = '', rest = ''] = (request.url ?? '').split('/')
  if (id === '') {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' })
    return pipeline(Readable.from(pieces()), response)
  }
  if (request.method !== 'GET') await json(request)
  const [status, body] = await act(request.method ?? 'GET', id, action, rest)
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))
}

/** Gateways that a region takes with it cannot be reached while it is away, and some have ended when it is back. */
async function turnRegion(away: boolean): Promise<void> {
  isAway = away
  const gone = [...sandboxes].filter(([, one]) => one.isRunning && one.isInRegion)
  await pMap(
    gone,
    async ([id, sandbox]) => {
      if (away) return rm(linkOf(id), { force: true })
      if (Math.random() < endsWithRegion) return endGateway(id, sandbox)
      await link(id, 'ready')
    },
    { concurrency: linksAtOnce },
  )
}

async function endSome(count: number): Promise<void> {
  const running = [...sandboxes].filter(([, one]) => one.isRunning && !one.boot)
  for (let ended = 0; ended < count && running.length > 0; ended += 1) {
    const [chosen] = running.splice(Math.floor(Math.random() * running.length), 1)
    await endGateway(...present(chosen))
  }
}

async function open(at: string): Promise<number> {
  folder = at
  await mkdir(folder, { recursive: true })
  const starting = await startFakeGateway({ socketPath: join(folder, 'starting') })
  starting.behaviour.health = 'starting'
  const ready = await startFakeGateway({ socketPath: join(folder, 'ready') })
  ready.behaviour.pauseMs = 20
  setInterval(() => {
    for (const gateway of [starting, ready]) {
      gateway.turns.length = 0
      gateway.calls.length = 0
    }
  }, forgetEveryMs)
  return listen(createServer((request, response) => void answer(request, response).catch(() => response.destroy())))
}

answerMessages<PlatformMessage>(async (message) => {
  if (message.kind === 'open') return { port: await open(message.folder) }
  if (message.kind === 'region') await turnRegion(message.isAway)
  if (message.kind === 'end') await endSome(message.count)
  if (message.kind === 'run') {
    const run = async (id: string) => {
      sandboxes.set(id, { isRunning: true, isInRegion: isInRegion(id), boot: null })
      await link(id, 'ready')
    }
    await pMap(message.ids, run, { concurrency: linksAtOnce })
  }
  return {}
})
