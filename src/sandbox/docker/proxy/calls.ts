import { isDeepStrictEqual } from 'node:util'
import { type TProperties, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type Docker from 'dockerode'
import { buildDeadlineMs, type ImageBuild, imageName } from '#sandbox/docker/image.ts'
import { bridgeOf } from '#sandbox/docker/network.ts'
import { labels, type Role, sandboxName } from '#sandbox/docker/profile.ts'
import type { Dockerd, Outgoing } from './dockerd.ts'
import { Refusal } from './refusal.ts'
import {
  closed,
  execShape,
  fenceShape,
  filesShape,
  filtersShape,
  networkShape,
  sandboxShape,
  volumeShape,
} from './shapes.ts'

/** Who asks: the processes that serve the API, or workers. */
export type Share = 'api' | 'worker'

export interface CallsOptions {
  dockerd: Dockerd
  /** The name of the agents' network. */
  network: string
  /** The images that may be built. */
  builds(): Promise<ImageBuild[]>
}

/** A call that was found on the list. */
export interface Asked {
  /** The parts of the path: those that it has. */
  at: Record<'container' | 'execution' | 'id' | 'image', string>
  query: Record<string, string>
  /** Undefined unless it is JSON. */
  body: unknown
  /** Aborted once the call is over, however it ended. */
  signal: AbortSignal
  /** Gives the call so many milliseconds from now on. */
  within(ms: number): void
}

/** What dockerd is to be asked instead, or the answer itself. */
type Pass = (Omit<Outgoing, 'method' | 'upgrade'> & { deadlineMs?: number }) | { answer: unknown }

export interface Call {
  method: 'GET' | 'POST' | 'DELETE'
  /** Of the whole path. */
  path: RegExp
  /** A parameter that is not in it is refused. */
  query: TSchema
  /** Whether it makes the connection a stream to a program. */
  upgrade: boolean
  /** Throws a Refusal. */
  pass(asked: Asked): Promise<Pass> | Pass
}

/** What the driver itself waits, and longer. */
const marginMs = 5000
const fenceDeadlineMs = 60_000 + marginMs
const stopMarginMs = 20_000 + marginMs

const uuid = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
const sandbox = `chowder-(?<id>${uuid})`
const files = '-files-[0-9a-f]{12}'
const container = `/containers/(?<container>chowder-${uuid}(?:${files})?|[0-9a-f]{64})`
const execution = '/exec/(?<execution>[0-9a-f]{64})'
const image = `(?<image>${imageName.source.slice(1, -1)})`

const Text = Type.String()
const Yes = Type.Literal('true')
const Output = { stdout: Yes, stderr: Yes }
const Removed = Type.Literal('removed')
const YesOrNo = Type.Union([Yes, Type.Literal('false')])
const Count = Type.String({ pattern: '^\\d{1,6}$' })

/** The id in a name of that pattern. */
const idIn = (pattern: string, name: unknown) => new RegExp(`^${pattern}$`).exec(String(name))?.groups?.id

/** What was asked for must be of that shape. */
function check<T extends object>(what: string, shape: TSchema, value: unknown): T {
  const fault = Value.Errors(shape, value).First()
  if (fault) throw new Refusal(403, `${what} is not as Chowder makes it: ${fault.path || '/'}: ${fault.message}`)
  return value as T
}

const listed =
  (upgrade: boolean) =>
  (method: Call['method'], path: string, query: TProperties, pass: Call['pass']): Call => ({
    method,
    path: new RegExp(`^${path}$`),
    query: closed(query),
    upgrade,
    pass,
  })
const call = listed(false)
const stream = listed(true)

/**
 * The calls of dockerd that a share may make; there are no others. Each is written anew from what was checked, and names
 * become the ids of what was looked at, so that nothing else is acted on.
 *
 * What is left to a worker that was taken over: to make, stop and destroy the agents on this host, to reach what is in
 * them, and to use up the host's disk and memory. Each program of its own runs in a sandbox: images are built from the
 * files of this process, not from what the worker sends, so that the fence, which has the host's network, is always the
 * fence. An api that was taken over reaches what is in agents, of every organization.
 */
export function callsOf(share: Share, { dockerd, network, builds }: CallsOptions): Call[] {
  const isWorker = share === 'worker'

  /** A container of Chowder's own that is for one of these. */
  async function own(reference: string, roles: Role[], signal: AbortSignal): Promise<Docker.ContainerInspectInfo> {
    const found = await dockerd.ask<Docker.ContainerInspectInfo>(`/containers/${reference}/json`, signal)
    if (roles.some((role) => found.Config.Labels[labels.role] === role)) return found
    throw new Refusal(403, `only for containers that Chowder has made as ${roles.join(' or ')}`)
  }

  const toOwn =
    (roles: Role[], path: string, deadlineOf?: (query: Asked['query']) => number): Call['pass'] =>
    async ({ at, query, signal }) => ({
      path: `/containers/${(await own(at.container, roles, signal)).Id}${path}`,
      query,
      ...(deadlineOf && { deadlineMs: deadlineOf(query) }),
    })

  async function ownExecution(id: string, signal: AbortSignal): Promise<Docker.ExecInspectInfo> {
    const found = await dockerd.ask<Docker.ExecInspectInfo>(`/exec/${id}/json`, signal)
    await own(found.ContainerID, ['sandbox', 'files'], signal)
    return found
  }

  /** An image by its name, or by its id as that of one that a sandbox was made from. */
  async function checkImage(name: string, signal: AbortSignal): Promise<void> {
    if (imageName.test(name)) return
    const filters = JSON.stringify({ ancestor: [name], label: [`${labels.role}=sandbox`] })
    const made = await dockerd.ask<Docker.ContainerInfo[]>('/containers/json', signal, { all: 'true', filters })
    if (!made.some(({ ImageID }) => ImageID === name)) throw new Refusal(403, `${name} is no image of a sandbox`)
  }

  /** The shape of a container, by its name. */
  async function containerShape(name: string | undefined, signal: AbortSignal): Promise<TSchema> {
    const beside = idIn(sandbox + files, name)
    if (beside) return filesShape(beside)
    const id = idIn(sandbox, name)
    if (id && isWorker) return sandboxShape(id, network)
    if (name === undefined && isWorker)
      return fenceShape(bridgeOf(await dockerd.ask<Docker.NetworkInspectInfo>(`/networks/${network}`, signal)))
    throw new Refusal(403, 'the container does not have a name that it may have')
  }

  /** Fulfilled once every build that was asked for is over. */
  let built: Promise<unknown> = Promise.resolve()

  /** Workers ask at once for the same image: one after another, the next finds what the one before has made. */
  async function inTurn(signal: AbortSignal): Promise<void> {
    const before = built
    const { promise: over, resolve } = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => resolve(), { once: true })
    built = Promise.all([before, over])
    await Promise.race([before, over])
    signal.throwIfAborted()
  }

  const list = (path: string, query: TProperties): Call =>
    call('GET', path, { ...query, filters: Text }, ({ query }) => {
      const filters = check('the filter', filtersShape, parseJson(query.filters ?? ''))
      return { path, query: { ...query, filters: JSON.stringify(filters) } }
    })

  const shared = [
    call('GET', '/_ping', {}, () => ({ path: '/_ping' })),
    call('GET', `${container}/json`, {}, async ({ at, signal }) => ({
      answer: await own(at.container, ['sandbox'], signal),
    })),
    call('POST', '/containers/create', { name: Type.Optional(Text) }, async ({ query, body, signal }) => {
      const options = check<{ Image: string }>('the container', await containerShape(query.name, signal), body)
      if (idIn(sandbox + files, query.name) && !query.name?.endsWith(options.Image.slice(-12)))
        throw new Refusal(403, 'the container is not named after its image') // else there could be any number of them
      await checkImage(options.Image, signal)
      return { path: '/containers/create', query, body: options }
    }),
    call('POST', `${container}/start`, {}, toOwn(isWorker ? ['sandbox', 'files', 'fence'] : ['files'], '/start')),
    call('POST', `${container}/exec`, {}, async ({ at, body, signal }) => ({
      path: `/containers/${(await own(at.container, ['sandbox', 'files'], signal)).Id}/exec`,
      body: check('the program', execShape, body),
    })),
    stream('POST', `${execution}/start`, {}, async ({ at, signal }) => {
      const { ID } = await ownExecution(at.execution, signal)
      return { path: `/exec/${ID}/start`, body: { Detach: false, Tty: false } }
    }),
    call('GET', `${execution}/json`, {}, async ({ at, signal }) => ({
      answer: await ownExecution(at.execution, signal),
    })),
    call('GET', `/images/${image}/json`, {}, ({ at }) => ({ path: `/images/${at.image}/json` })),
  ]
  if (!isWorker) return shared

  return [
    ...shared,
    list('/containers/json', { all: Yes }),
    call(
      'POST',
      `${container}/stop`,
      { t: Count },
      toOwn(['sandbox'], '/stop', ({ t }) => Number(t) * 1000 + stopMarginMs),
    ),
    call('GET', `${container}/logs`, { ...Output, tail: Count }, toOwn(['sandbox'], '/logs')),
    call(
      'POST',
      `${container}/attach`,
      { ...Output, stream: Yes },
      toOwn(['fence'], '/attach', () => fenceDeadlineMs),
    ),
    call(
      'POST',
      `${container}/wait`,
      { condition: Removed },
      toOwn(['fence'], '/wait', () => fenceDeadlineMs),
    ),
    call('DELETE', container, { force: YesOrNo }, toOwn(['sandbox', 'files', 'fence'], '')),
    list('/volumes', {}),
    call('POST', '/volumes/create', {}, ({ body }) => {
      const id = idIn(sandbox, (body as { Name?: unknown } | undefined)?.Name) ?? ''
      return { path: '/volumes/create', body: check('the volume', volumeShape(id), body) }
    }),
    call('DELETE', `/volumes/${sandbox}`, {}, async ({ at, signal }) => {
      const path = `/volumes/${sandboxName(at.id)}`
      const { Labels } = await dockerd.ask<Docker.VolumeInspectInfo>(path, signal)
      if (Labels?.[labels.instance] !== at.id) throw new Refusal(403, 'only for volumes that Chowder has made')
      return { path }
    }),
    call('GET', `/networks/${network}`, {}, () => ({ path: `/networks/${network}` })),
    call('POST', '/networks/create', {}, ({ body }) => ({
      path: '/networks/create',
      body: check('the network', networkShape(network), body),
    })),
    call(
      'POST',
      '/build',
      { t: Text, networkmode: Text, buildargs: Text, rm: Yes, forcerm: Yes },
      async ({ query, signal, within }) => {
        const build = (await builds()).find(({ name }) => name === query.t)
        if (!build) throw new Refusal(403, `${query.t} is no image that this version of Chowder builds`)
        const { buildargs, ...options } = build.options
        const wanted = { ...options, buildargs: JSON.stringify(buildargs), rm: 'true', forcerm: 'true' }
        if (!isDeepStrictEqual(query, wanted))
          throw new Refusal(403, 'the build is asked for with other settings (DOCKER_…) than the proxy has')
        within(buildDeadlineMs)
        await inTurn(signal)
        return { path: '/build', query, body: build.context(), deadlineMs: buildDeadlineMs + marginMs }
      },
    ),
  ]
}

/** Throws a Refusal for what is no JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new Refusal(400, 'what must be JSON is none')
  }
}
