import type { TSchema } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  execShape,
  filesShape,
  filtersShape,
  firewallShape,
  limitsShape,
  networkShape,
  roomShape,
  sandboxShape,
  volumeShape,
} from '#docker-proxy/shapes.ts'
import { networkOptions } from '#sandbox/docker/network.ts'
import {
  filesContainer,
  firewallContainer,
  roomContainer,
  sandboxContainer,
  sharedUser,
  userOf,
  volumeLabels,
} from '#sandbox/docker/profile.ts'
import { present } from '../../support/present.ts'

const id = '0198a6a0-6d3c-7c0e-9b43-9f2a4c5d6e7f'
const other = '0198a6a0-6d3c-7c0e-9b43-9f2a4c5d6e80'
const name = 'chowder-openclaw:v1-0123456789ab'
const imageId = `sha256:${'a'.repeat(64)}`
const network = 'chowder-agents'

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

/** As it is sent: without the name, which is in the query. */
const sent = (options: object): Json => {
  const { name: _, ...body } = JSON.parse(JSON.stringify(options))
  return body
}
const passes = (shape: TSchema, body: unknown) => Value.Check(shape, body)

const words = fc.string({ unit: 'grapheme', maxLength: 20 })
const spec = fc.record({
  publishAddress: fc.constantFrom('127.0.0.1', null),
  proxy: fc.option(fc.constant('http://relay:18790')),
  image: fc.constantFrom(name, 'chowder-openclaw:v12-ba9876543210'),
  installation: fc.uuid(),
  organizationId: fc.uuid(),
  command: fc.array(words),
  env: fc.dictionary(fc.stringMatching(/^[A-Z_]{1,10}$/), words),
  labels: fc.dictionary(fc.stringMatching(/^[a-z-]{1,10}$/), words),
  resources: fc.record({
    memoryMb: fc.integer({ min: 1, max: 65_536 }),
    cpus: fc.double({ min: 0.01, max: 64, noNaN: true }),
    pids: fc.integer({ min: 1, max: 10_000 }),
    diskMb: fc.integer({ min: 0, max: 1_000_000 }),
  }),
})

const sandboxOf = ({
  publishAddress,
  proxy,
  image,
  installation,
  command,
  env,
  ...rest
}: typeof spec extends fc.Arbitrary<infer T> ? T : never) =>
  sent(
    sandboxContainer(
      { id, release: 'v1', command: () => command, env: () => env, ...rest },
      {
        installation,
        image,
        releaseFolder: '/opt/chowder/v1',
        network,
        publishAddress,
        proxy,
        user: userOf(id),
        admission: { tokenFile: 'x.json', tokenKeys: ['a'], openPaths: ['/healthz'] },
      },
    ),
  )

const [anySandbox] = fc.sample(spec, { numRuns: 1, seed: 1 }).map(sandboxOf)

/** The parts that may be left out: a gateway that is not published, and agents that do not reach each other's gateways. */
const optional = /^(HostConfig\.(PortBindings|Dns)|Cmd\.3)$/

/** The calls of the driver, the shape of each, and the places that may hold something else. */
const bodies: [what: string, body: Json, shape: TSchema, free: RegExp][] = [
  [
    'a sandbox',
    present(anySandbox),
    sandboxShape(id, network),
    /^(Cmd(\.\d+)?|Env(\.\d+)?|Labels\.chowder\.(installation|organization|release|paths|spec|label\..*)|HostConfig\.(Memory|MemorySwap|NanoCpus|PidsLimit|Ulimits\.[02]\.(Soft|Hard)))$/,
  ],
  [
    'a second room',
    sent(
      roomContainer(
        { id, organizationId: 'o', resources: { memoryMb: 1, cpus: 1, pids: 1, diskMb: 1 } },
        { folder: 'state/workspace', socketFolder: 'room', place: 'shared/workspace', hidden: '.openclaw' },
        { installation: 'i', image: name, user: userOf(id) },
      ),
    ),
    roomShape(id),
    /^(Cmd(\.\d+)?|Labels\.chowder\.(installation|organization)|HostConfig\.(Memory|MemorySwap|NanoCpus|PidsLimit|Ulimits\.[02]\.(Soft|Hard)|Mounts\.0\.Target|Mounts\.\d\.VolumeOptions(\.Subpath)?))$/,
  ],
  [
    'a container for files',
    sent(filesContainer('i', id, 'x', name, userOf(id))),
    filesShape(id),
    /^Labels\.chowder\.installation$/,
  ],
  [
    'the firewall',
    sent(firewallContainer(imageId, 'br-0123456789ab', 'agents', null)),
    firewallShape(['chowder-out', 'br-0123456789ab']),
    /^never$/,
  ],
  [
    'the firewall with a port',
    sent(firewallContainer(imageId, network, 'relay', 18_790)),
    firewallShape([network]),
    /^never$/,
  ],
  [
    'a volume',
    { Name: `chowder-${id}`, Labels: volumeLabels('i', id) },
    volumeShape(id),
    /^Labels\.chowder\.installation$/,
  ],
  ['the network', sent(networkOptions(network, { internal: true })), networkShape(network), /^Internal$/],
  [
    'a program',
    { AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: ['a', 'b'], WorkingDir: '/agent' },
    execShape,
    /^(Cmd(\.\d+)?|WorkingDir)$/,
  ],
]

/** Fields of dockerd's that would give a container more than it has. */
const dangerous = [
  ...[
    'Binds',
    'Privileged',
    'CapAdd',
    'Devices',
    'DeviceCgroupRules',
    'DeviceRequests',
    'PidMode',
    'IpcMode',
    'UTSMode',
  ],
  ...[
    'UsernsMode',
    'CgroupnsMode',
    'CgroupParent',
    'Cgroup',
    'Runtime',
    'Sysctls',
    'Links',
    'PublishAllPorts',
    'GroupAdd',
  ],
  ...[
    'ExtraHosts',
    'Dns',
    'VolumeDriver',
    'VolumesFrom',
    'Mounts',
    'StorageOpt',
    'MaskedPaths',
    'ReadonlyPaths',
    'OomScoreAdj',
  ],
  ...[
    'ContainerIDFile',
    'Annotations',
    'Ulimits',
    'Entrypoint',
    'Volumes',
    'OnBuild',
    'Healthcheck',
    'NetworkingConfig',
  ],
  ...[
    'Shell',
    'Tty',
    'MacAddress',
    'Domainname',
    'Driver',
    'DriverOpts',
    'ClusterVolumeSpec',
    'IPAM',
    'ConfigFrom',
    'Scope',
  ],
  ...[
    'Attachable',
    'Ingress',
    'Internal',
    'User',
    'DetachKeys',
    'BindOptions',
    'VolumeOptions',
    'TmpfsOptions',
    '__proto__',
  ],
  ...['com.docker.compose.project', 'traefik.enable', 'toString', ''],
]

type Path = (string | number)[]

function* nodesOf(value: Json, path: Path = []): Generator<[Path, Json]> {
  yield [path, value]
  if (typeof value === 'object' && value !== null)
    for (const [key, inner] of Object.entries(value))
      yield* nodesOf(inner, [...path, Array.isArray(value) ? Number(key) : key])
}

/** A copy with a change at a path. */
function changed(body: Json, path: Path, change: (holder: Record<string, Json>, key: string) => void): Json {
  const root = { root: structuredClone(body) }
  let holder: Record<string, Json> = root
  let key = 'root'
  for (const step of path) {
    holder = holder[key] as Record<string, Json>
    key = String(step)
  }
  change(holder, key)
  return root.root
}

const define = (holder: object, key: string, value: Json) =>
  Object.defineProperty(holder, key, { value, enumerable: true, writable: true, configurable: true })

describe.each(bodies)('%s', (_, body, shape, free) => {
  const nodes = [...nodesOf(body)]
  const objects = nodes.filter(([, value]) => typeof value === 'object' && value !== null && !Array.isArray(value))
  const isFree = (path: Path) => free.test(path.join('.'))

  test('is accepted as the driver sends it', () => {
    expect([...Value.Errors(shape, body)]).toEqual([])
    expect(nodes.length).toBeGreaterThan(5)
  })

  test('is refused without any one of its properties', () => {
    for (const [path] of nodes.slice(1)) {
      if (isFree(path) || optional.test(path.join('.'))) continue
      const without = changed(body, path, (holder, key) => {
        if (Array.isArray(holder)) holder.splice(Number(key), 1)
        else delete holder[key]
      })
      expect([path, passes(shape, without)]).toEqual([path, false])
    }
  })

  test('is refused with any other property, in any case', () => {
    const known = nodes.flatMap(([path]) => (typeof path.at(-1) === 'string' ? [String(path.at(-1))] : []))
    const names = [...dangerous, ...known].flatMap((key) => [key, key.toLowerCase(), key.toUpperCase()])
    for (const [path, value] of objects)
      for (const key of names) {
        if (Object.hasOwn(value as object, key)) continue
        for (const extra of [true, '', [], {}, null, ['/:/host'], 1]) {
          const more = changed(body, path, (holder, at) => define(holder[at] as object, key, extra))
          if (isFree([...path, key]) && typeof extra === 'string') continue
          expect([path, key, passes(shape, more)]).toEqual([path, key, false])
        }
      }
  })

  test('is refused with any other value of a property that is not free', () => {
    const value = fc.oneof(fc.jsonValue(), fc.constantFrom(...nodes.map(([, value]) => value))) as fc.Arbitrary<Json>
    fc.assert(
      fc.property(fc.constantFrom(...nodes), value, ([path, was], now) => {
        fc.pre(!isFree(path) && !Value.Equal(was, now))
        fc.pre(!(path.join('.') === 'Image' && typeof now === 'string' && (now === name || now === imageId)))
        const changedBody = changed(body, path, (holder, key) => define(holder, key, now))
        expect(passes(shape, changedBody)).toBe(false)
      }),
      { numRuns: 2000 },
    )
  })
})

test('a sandbox passes with any settings', () => {
  fc.assert(fc.property(spec, (made) => passes(sandboxShape(id, network), sandboxOf(made))))
})

test.each([
  ['of another instance', sandboxShape(other, network)],
  ['on another network', sandboxShape(id, 'bridge')],
])('a sandbox %s is refused', (_, shape) => {
  expect(passes(shape, anySandbox)).toBe(false)
})

test('limits are positive numbers, and labels are Chowder’s own', () => {
  for (const limit of ['Memory', 'MemorySwap', 'NanoCpus', 'PidsLimit'])
    for (const value of [0, -1, 1.5, '1', null, true])
      expect(
        passes(
          sandboxShape(id, network),
          changed(present(anySandbox), ['HostConfig', limit], (holder, key) => define(holder, key, value)),
        ),
      ).toBe(false)
  for (const label of ['com.docker.compose.project', 'Chowder.x', 'xchowder.x', 'chowder'])
    expect(
      passes(
        sandboxShape(id, network),
        changed(present(anySandbox), ['Labels', label], (holder, key) => define(holder, key, 'x')),
      ),
    ).toBe(false)
})

test('images are named as Chowder names them, or by their ids', () => {
  const made = (Image: Json) =>
    changed(sent(filesContainer('i', id, 'x', name, userOf(id))), ['Image'], (holder, key) =>
      define(holder, key, Image),
    )
  for (const image of [name, imageId]) expect(passes(filesShape(id), made(image))).toBe(true)
  const foreign = [
    'node:24-slim',
    `x/${name}`,
    `${name}\n`,
    `${name}0`,
    'chowder-openclaw:latest',
    'a'.repeat(64),
    `sha256:${'A'.repeat(64)}`,
  ]
  for (const image of foreign) expect([image, passes(filesShape(id), made(image))]).toEqual([image, false])
  const foreignImage = changed(sent(firewallContainer(imageId, network, 'agents', null)), ['Image'], (holder, key) =>
    define(holder, key, name),
  )
  expect(passes(firewallShape([network]), foreignImage)).toBe(false)
})

test('T1: containers have the user of their instance, or that of instances from before', () => {
  const made = (body: Json, User: string) => changed(body, ['User'], (holder, key) => define(holder, key, User))
  const files = sent(filesContainer('i', id, 'x', name, userOf(id)))
  const another = userOf('00000000-0000-4000-8000-000000000000')
  for (const [body, shape] of [
    [present(anySandbox), sandboxShape(id, network)],
    [files, filesShape(id)],
  ] as const) {
    for (const user of [userOf(id), sharedUser]) expect(passes(shape, made(body, user))).toBe(true)
    for (const user of ['', '0:0', 'root', userOf(id).split(':')[0] ?? '', another])
      expect([user, passes(shape, made(body, user))]).toEqual([user, false])
  }
})

test('a list names an installation', () => {
  for (const label of [['chowder.installation=i'], ['chowder.installation=i', 'chowder.role=sandbox']])
    expect(passes(filtersShape, { label })).toBe(true)
  for (const filters of [
    {},
    { label: [] },
    { label: ['chowder.role=sandbox'] },
    { label: ['chowder.installation='] },
    { label: ['chowder.installation'] },
    { label: ['chowder.installation=i', 'x'] },
    { label: { 'chowder.installation=i': true } },
    { label: ['chowder.installation=i'], name: ['x'] },
    { Label: ['chowder.installation=i'] },
  ])
    expect([filters, passes(filtersShape, filters)]).toEqual([filters, false])
})

test.each([
  ['/room/../run', 'home/state'],
  ['/var/run/room', 'home/state'],
  ['/room/x', 'home/../../etc'],
  ['/room/x', 'uploads'],
])('a second room at %s with %s of the volume is refused', (target, subpath) => {
  const [, body, shape] = present(bodies.find(([what]) => what === 'a second room'))
  const changed = structuredClone(body) as {
    HostConfig: { Mounts: [{ Target: string; VolumeOptions: { Subpath: string } }] }
  }
  expect(passes(shape, changed)).toBe(true)
  const [mount] = changed.HostConfig.Mounts
  mount.Target = target
  mount.VolumeOptions.Subpath = subpath
  expect(passes(shape, changed)).toBe(false)
})

test('a running sandbox gets limits alone', () => {
  const limits = { NanoCpus: 1e9, PidsLimit: 64 }
  const takes = (body: object) => Value.Check(limitsShape, body)
  for (const body of [limits, { ...limits, Memory: 1, MemorySwap: 1 }])
    expect([body, takes(body)]).toEqual([body, true])
  for (const body of [{}, { CpuShares: 4096 }, { ...limits, CpuShares: 2 }, { ...limits, BlkioWeight: 1 }])
    expect([body, takes(body)]).toEqual([body, false])
})
