import { type TProperties, type TSchema, Type } from '@sinclair/typebox'
import { imageName } from '#sandbox/docker/image.ts'
import { networkOptions } from '#sandbox/docker/network.ts'
import {
  fenceContainer,
  filesContainer,
  forwarderPort,
  labels,
  ownership,
  sandboxContainer,
  sandboxName,
} from '#sandbox/docker/profile.ts'

/*
 * What bodies of calls may look like. Each is made from what the driver itself would send: whatever differs from that in
 * a place that is not named here, or is there besides, is refused.
 */

export const closed = (properties: TProperties) => Type.Object(properties, { additionalProperties: false })

/** Equal to the sample but for the properties that are free. */
function like(sample: unknown, free: TProperties = {}): TSchema {
  if (Array.isArray(sample)) return Type.Tuple(sample.map((item) => like(item)))
  if (typeof sample !== 'object' || sample === null) return Type.Literal(sample as string)
  const properties = Object.entries(sample).map(([name, value]) => [name, like(value)])
  return closed({ ...Object.fromEntries(properties), ...free })
}

const Text = Type.String()
const Texts = Type.Array(Text)
const Positive = Type.Integer({ minimum: 1 })
const ImageName = Type.String({ pattern: imageName.source })
const ImageId = Type.String({ pattern: '^sha256:[0-9a-f]{64}$' })
const Image = Type.Union([ImageName, ImageId])

/** Labels of others' would make a container part of what is theirs, such as a compose project or a proxy's routes. */
const sandboxLabels = (id: string) =>
  Type.Intersect([
    Type.Record(Type.String({ pattern: '^chowder\\.' }), Text, { additionalProperties: false }),
    Type.Object({ ...like(ownership('', id, 'sandbox')).properties, [labels.installation]: Text }),
  ])

const owned = (id: string, role: 'sandbox' | 'files') => like(ownership('', id, role), { [labels.installation]: Text })

export function sandboxShape(id: string, network: string): TSchema {
  const nothing = { organizationId: '', release: '', command: () => [], env: () => ({}), labels: {} }
  const { name, HostConfig, ...sample } = sandboxContainer(
    { id, ...nothing, resources: { memoryMb: 1, cpus: 1, pids: 1 } },
    {
      installation: '',
      image: '',
      releaseFolder: '',
      network,
      published: true,
      admission: { tokenFile: '', tokenKeys: [], openPaths: [] },
    },
  )
  return like(sample, {
    Image: ImageName,
    Cmd: Texts,
    Env: Texts,
    Labels: sandboxLabels(id),
    HostConfig: like(HostConfig, {
      Memory: Positive,
      MemorySwap: Positive,
      NanoCpus: Positive,
      PidsLimit: Positive,
      PortBindings: Type.Optional(like(HostConfig?.PortBindings)),
    }),
  })
}

export function filesShape(id: string): TSchema {
  const { name, ...sample } = filesContainer('', id, '', '')
  return like(sample, { Image, Labels: owned(id, 'files') })
}

export const fenceShape = (bridge: string): TSchema =>
  Type.Union([null, forwarderPort].map((port) => like(fenceContainer('', bridge, port), { Image: ImageId })))

export const volumeShape = (id: string): TSchema =>
  closed({ Name: Type.Literal(sandboxName(id)), Labels: owned(id, 'sandbox') })

export const networkShape = (name: string): TSchema => like(networkOptions(name))

const On = Type.Literal(true)

/** A program run beside another, as that one's user. */
export const execShape = closed({
  AttachStdin: On,
  AttachStdout: On,
  AttachStderr: On,
  Cmd: Type.Array(Text, { minItems: 1 }),
  WorkingDir: Type.Optional(Text),
})

/** Filters of a list, which names the installation whose parts it is to show, or asks for fences that were never started. */
export const filtersShape = Type.Union([
  closed({
    label: Type.Intersect([
      Type.Array(Type.String({ pattern: `^chowder\\.(installation|instance|role)=` })),
      Type.Array(Text, { contains: Type.String({ pattern: '^chowder\\.installation=.' }), minItems: 1 }),
    ]),
  }),
  closed({
    label: Type.Tuple([Type.Literal('chowder.role=fence')]),
    status: Type.Tuple([Type.Literal('created')]),
  }),
])
