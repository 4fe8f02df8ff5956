import { isDeepStrictEqual } from 'node:util'
import { type TProperties, Type } from '@sinclair/typebox'
import type Docker from 'dockerode'
import type { ImageBuild } from '#sandbox/container/image.ts'
import { buildDeadlineMs } from '#sandbox/docker/images.ts'
import { diskUseDeadlineMs } from '#sandbox/docker/limits.ts'
import { labels, sandboxName } from '#sandbox/docker/profile.ts'
import { type Call, call, check, type Networks, parseJson, type Share, stream } from './call.ts'
import type { Dockerd } from './dockerd.ts'
import { createOwn, filesIdIn, patterns, sandboxIdIn } from './own.ts'
import { Refusal } from './refusal.ts'
import { eventFiltersShape, execShape, filtersShape, limitsShape, networkShape, volumeShape } from './shapes.ts'

export interface CallsOptions {
  dockerd: Dockerd
  networks: Networks
  /** The images that may be built. */
  builds(): Promise<ImageBuild[]>
}

/** Deadlines are longer than those of the driver, so that the driver reports its own. */
const marginMs = 5000
const firewallDeadlineMs = 60_000 + marginMs
const stopMarginMs = 20_000 + marginMs
/** Longer than a worker follows the ends of containers in one request. */
const followDeadlineMs = 12 * 60_000

const container = `/containers/${patterns.container}`
const execution = `/exec/${patterns.execution}`

const Text = Type.String()
const Yes = Type.Literal('true')
const Output = { stdout: Yes, stderr: Yes }
const Removed = Type.Literal('removed')
const No = Type.Literal('false')
const YesOrNo = Type.Union([Yes, No])
const Count = Type.String({ pattern: '^\\d{1,6}$' })

/**
 * The permitted calls of dockerd for a share. Each call is rebuilt from its checked parts, and names become the ids of
 * the checked containers, so that the call cannot act on others.
 *
 * An attacker in a worker can create, stop and destroy the agents on this host, reach their files, and use up the
 * host's disk and memory. All programs of the attacker run in sandboxes: images are built from the files of this
 * process, not from the worker's, so that only Chowder's own firewall program runs in the host's network. An attacker
 * in an api can reach the files and the output of the agents of every organization.
 */
export function callsOf(share: Share, { dockerd, networks, builds }: CallsOptions): Call[] {
  const isWorker = share === 'worker'
  const own = createOwn(dockerd, share, networks)

  /** Fulfilled when every requested build has ended. */
  let built: Promise<unknown> = Promise.resolve()

  /** Runs builds one after another: workers that request the same image at once share the first build. */
  async function waitForBuilds(signal: AbortSignal): Promise<void> {
    const before = built
    const { promise: ended, resolve } = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => resolve(), { once: true })
    built = Promise.all([before, ended])
    await Promise.race([before, ended])
    signal.throwIfAborted()
  }

  const list = (path: string, query: TProperties): Call =>
    call('GET', path, { ...query, filters: Text }, ({ query }) => {
      const filters = check('the filter', filtersShape, parseJson(query.filters ?? ''))
      return { path, query: { ...query, filters: JSON.stringify(filters) } }
    })

  const shared = [
    call('GET', '/_ping', {}, () => ({ path: '/_ping' })),
    call('GET', `${container}/json`, {}, async ({ parts, signal }) => ({
      answer: await own.container(parts.container, isWorker ? ['sandbox', 'room'] : ['sandbox'], signal),
    })),
    call('POST', '/containers/create', { name: Type.Optional(Text) }, async ({ query, body, signal }) => {
      const options = check<{ Image: string }>('the container', await own.containerShape(query.name, signal), body)
      if (filesIdIn(query.name) && !query.name?.endsWith(options.Image.slice(-12)))
        throw new Refusal(403, 'the container is not named after its image') // else their number is unlimited
      await own.image(options.Image, signal)
      return { path: '/containers/create', query, body: options }
    }),
    call(
      'POST',
      `${container}/start`,
      {},
      own.forward(isWorker ? ['sandbox', 'room', 'files', 'firewall'] : ['files'], '/start'),
    ),
    call('POST', `${container}/exec`, {}, async ({ parts, body, signal }) => ({
      path: `/containers/${(await own.container(parts.container, ['sandbox', 'files'], signal)).Id}/exec`,
      body: check('the program', execShape, body),
    })),
    stream('POST', `${execution}/start`, {}, async ({ parts, signal }) => {
      const { ID } = await own.execution(parts.execution, signal)
      return { path: `/exec/${ID}/start`, body: { Detach: false, Tty: false } }
    }),
    call('GET', `${execution}/json`, {}, async ({ parts, signal }) => ({
      answer: await own.execution(parts.execution, signal),
    })),
    call(
      'GET',
      `${container}/logs`,
      {
        ...Output,
        timestamps: Yes,
        tail: Count,
        since: Type.Optional(Type.String({ pattern: '^\\d{1,12}\\.\\d{9}$' })),
      },
      own.forward(['sandbox'], '/logs'),
    ),
    call('GET', `${container}/stats`, { stream: No, 'one-shot': Yes }, own.forward(['sandbox', 'room'], '/stats')),
    call('GET', `/images/${patterns.image}/json`, {}, ({ parts }) => ({ path: `/images/${parts.image}/json` })),
  ]
  if (!isWorker) return shared

  return [
    ...shared,
    list('/containers/json', { all: Yes }),
    call('GET', '/events', { filters: Text }, ({ query }) => {
      const filters = check('the filter', eventFiltersShape, parseJson(query.filters ?? ''))
      return { path: '/events', query: { filters: JSON.stringify(filters) }, deadlineMs: followDeadlineMs }
    }),
    call('POST', `${container}/update`, {}, async ({ parts, body, signal }) => ({
      path: `/containers/${(await own.container(parts.container, ['sandbox', 'room'], signal)).Id}/update`,
      body: check('the limits', limitsShape, body),
    })),
    // dockerd lists all volumes of the host; foreign ones are removed.
    call('GET', '/system/df', { type: Type.Literal('volume') }, async ({ query, signal, within }) => {
      within(diskUseDeadlineMs + marginMs)
      const { Volumes } = await dockerd.ask<{ Volumes?: Docker.VolumeInspectInfo[] }>('/system/df', signal, query)
      return { answer: { Volumes: (Volumes ?? []).filter(({ Name }) => sandboxIdIn(Name)) } }
    }),
    call(
      'POST',
      `${container}/stop`,
      { t: Count },
      own.forward(['sandbox', 'room'], '/stop', ({ t }) => Number(t) * 1000 + stopMarginMs),
    ),
    call(
      'POST',
      `${container}/attach`,
      { ...Output, stream: Yes },
      own.forward(['firewall'], '/attach', () => firewallDeadlineMs),
    ),
    call(
      'POST',
      `${container}/wait`,
      { condition: Removed },
      own.forward(['firewall'], '/wait', () => firewallDeadlineMs),
    ),
    call('DELETE', container, { force: YesOrNo }, own.forward(['sandbox', 'room', 'files', 'firewall'], '')),
    list('/volumes', {}),
    call('POST', '/volumes/create', {}, ({ body }) => {
      const id = sandboxIdIn((body as { Name?: unknown } | undefined)?.Name) ?? ''
      return { path: '/volumes/create', body: check('the volume', volumeShape(id), body) }
    }),
    call('GET', `/volumes/${patterns.sandbox}`, {}, ({ parts }) => ({ path: `/volumes/${sandboxName(parts.id)}` })),
    call('DELETE', `/volumes/${patterns.sandbox}`, {}, async ({ parts, signal }) => {
      const path = `/volumes/${sandboxName(parts.id)}`
      const { Labels } = await dockerd.ask<Docker.VolumeInspectInfo>(path, signal)
      if (Labels?.[labels.instance] !== parts.id) throw new Refusal(403, 'only for volumes that Chowder has made')
      return { path }
    }),
    ...networks.map((name) => call('GET', `/networks/${name}`, {}, () => ({ path: `/networks/${name}` }))),
    call('POST', '/networks/create', {}, ({ body }) => ({
      path: '/networks/create',
      body: check('the network', networkShape(networks[0]), body),
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
          throw new Refusal(403, 'the build has other settings (DOCKER_…) than the proxy')
        within(buildDeadlineMs)
        await waitForBuilds(signal)
        return { path: '/build', query, body: build.context(), deadlineMs: buildDeadlineMs + marginMs }
      },
    ),
  ]
}
