import { type TProperties, type TSchema, Type } from '@sinclair/typebox'
import type Docker from 'dockerode'
import { imageName } from '#sandbox/container/image.ts'
import { forwarderPort } from '#sandbox/container/layout.ts'
import { networkOptions } from '#sandbox/docker/network.ts'
import {
  filesContainer,
  firewallContainer,
  labels,
  noNameServer,
  ownership,
  roomContainer,
  sandboxContainer,
  sandboxName,
  sharedUser,
  userOf,
  volumeLabels,
} from '#sandbox/docker/profile.ts'
import { mostOpenFiles } from '#sandbox/open-files.ts'
import { closed } from './call.ts'

/**
 * The schemas of the bodies of calls. Each is derived from the body that the driver itself would send, and lists the
 * properties that may differ.
 */

/** Matches values that equal the sample, except for the free properties. */
function like(sample: unknown, free: TProperties = {}): TSchema {
  if (Array.isArray(sample)) return Type.Tuple(sample.map((item) => like(item)))
  if (typeof sample !== 'object' || sample === null) return Type.Literal(sample as string)
  const properties = Object.entries(sample).map(([name, value]) => [name, like(value)])
  return closed({ ...Object.fromEntries(properties), ...free })
}

const Text = Type.String()
const Texts = Type.Array(Text)
const Positive = Type.Integer({ minimum: 1 })
const limits = { Memory: Positive, MemorySwap: Positive, NanoCpus: Positive, PidsLimit: Positive }
const OpenFiles = Type.Integer({ minimum: 1, maximum: mostOpenFiles })
/** The values of limits that differ between sandboxes. */
const freeUlimits: Record<string, TProperties> = {
  fsize: { Soft: Type.Integer(), Hard: Type.Integer() },
  nofile: { Soft: OpenFiles, Hard: OpenFiles },
}
const ImageName = Type.String({ pattern: imageName.source })
const ImageId = Type.String({ pattern: '^sha256:[0-9a-f]{64}$' })
const Image = Type.Union([ImageName, ImageId])

/** Only Chowder's labels: others would add the container to a compose project, or to the routes of a reverse proxy. */
const sandboxLabels = (id: string, role: 'sandbox' | 'room' = 'sandbox') =>
  Type.Intersect([
    Type.Record(Type.String({ pattern: '^chowder\\.' }), Text, { additionalProperties: false }),
    Type.Object({ ...like(ownership('', id, role)).properties, [labels.installation]: Text }),
  ])

/** The user of an instance; the shared one if its volume was made before it had its own. */
const userShape = (id: string) => Type.Union([Type.Literal(userOf(id)), Type.Literal(sharedUser)])

const ulimitsLike = (sample: Docker.HostConfig | undefined) =>
  Type.Tuple((sample?.Ulimits ?? []).map((one) => like(one, freeUlimits[one.Name ?? ''])))

export function sandboxShape(id: string, network: string): TSchema {
  const nothing = { organizationId: '', release: '', command: () => [], env: () => ({}), labels: {} }
  const { name, HostConfig, ...sample } = sandboxContainer(
    { id, ...nothing, resources: { memoryMb: 1, cpus: 1, pids: 1, diskMb: 1 } },
    {
      installation: '',
      image: '',
      releaseFolder: '',
      network,
      publishAddress: '127.0.0.1',
      admission: { tokenFile: '', tokenKeys: [], openPaths: [] },
      user: '',
      proxy: null,
    },
  )
  return like(sample, {
    Image: ImageName,
    User: userShape(id),
    Cmd: Texts,
    Env: Texts,
    Labels: sandboxLabels(id),
    HostConfig: like(HostConfig, {
      ...limits,
      Ulimits: ulimitsLike(HostConfig),
      PortBindings: Type.Optional(like(HostConfig?.PortBindings)),
      Dns: Type.Optional(like(noNameServer)),
    }),
  })
}

/** A change of the limits of a sandbox. The memory limit may be missing. */
export const limitsShape = closed({
  ...limits,
  Memory: Type.Optional(limits.Memory),
  MemorySwap: Type.Optional(limits.MemorySwap),
})

/** A path below a folder, without a way out of it. */
const below = (folder: string) => `^${folder}(/(?!\\.{1,2}(/|$))[\\w.-]+)+$`

export function roomShape(id: string): TSchema {
  const spec = { id, organizationId: '', resources: { memoryMb: 1, cpus: 1, pids: 1, diskMb: 1 } }
  const room = { folder: '', socketFolder: '', place: '', hidden: '' }
  const { name, HostConfig, ...sample } = roomContainer(spec, room, { installation: '', image: '', user: '' })
  const mount = (given: Docker.MountSettings) =>
    like(given, {
      ...(given.Target.startsWith('/room/') && { Target: Type.String({ pattern: below('/room') }) }),
      VolumeOptions: closed({ NoCopy: Type.Literal(true), Subpath: Type.String({ pattern: below('home') }) }),
    })
  const { '/tmp': tmp, '/run/chowder': run, ...rest } = HostConfig?.Tmpfs ?? {}
  const [hidden] = Object.values(rest)
  return like(sample, {
    Image: ImageName,
    User: userShape(id),
    Cmd: Texts,
    Labels: sandboxLabels(id, 'room'),
    HostConfig: like(HostConfig, {
      ...limits,
      Ulimits: ulimitsLike(HostConfig),
      Mounts: Type.Tuple((HostConfig?.Mounts ?? []).map(mount)),
      Tmpfs: Type.Object(
        { '/tmp': like(tmp), '/run/chowder': like(run) },
        { additionalProperties: like(hidden), minProperties: 3, maxProperties: 3 },
      ),
    }),
  })
}

export function filesShape(id: string): TSchema {
  const { name, ...sample } = filesContainer('', id, '', '', '')
  const Labels = like(ownership('', id, 'files'), { [labels.installation]: Text })
  return like(sample, { Image, User: userShape(id), Labels })
}

export const firewallShape = (bridges: string[]): TSchema =>
  Type.Union(
    bridges.flatMap((bridge) =>
      (['agents', 'relay'] as const).flatMap((of) =>
        [null, forwarderPort].map((port) => like(firewallContainer('', bridge, of, port), { Image: ImageId })),
      ),
    ),
  )

export const volumeShape = (id: string): TSchema =>
  closed({
    Name: Type.Literal(sandboxName(id)),
    Labels: like(volumeLabels('', id), { [labels.installation]: Text }),
  })

export const networkShape = (name: string): TSchema =>
  Type.Union([true, false].map((internal) => like(networkOptions(name, { internal }))))

const On = Type.Literal(true)

/** A program in a container, as the container's user. */
export const execShape = closed({
  AttachStdin: On,
  AttachStdout: On,
  AttachStderr: On,
  Cmd: Type.Array(Text, { minItems: 1 }),
  WorkingDir: Type.Optional(Text),
})

const ofInstallation = Type.Intersect([
  Type.Array(Type.String({ pattern: `^chowder\\.(installation|instance|role)=` })),
  Type.Array(Text, { contains: Type.String({ pattern: '^chowder\\.installation=.' }), minItems: 1 }),
])

/** The filters of the events that a worker may follow: the ends of an installation's own containers. */
export const eventFiltersShape = closed({
  type: Type.Tuple([Type.Literal('container')]),
  event: Type.Tuple([Type.Literal('die')]),
  label: ofInstallation,
})

/** The filters of a list: of an installation's own objects, or of firewall containers that were never started. */
export const filtersShape = Type.Union([
  closed({ label: ofInstallation }),
  closed({
    label: Type.Tuple([Type.Literal(`${labels.role}=firewall`)]),
    status: Type.Tuple([Type.Literal('created')]),
  }),
])
