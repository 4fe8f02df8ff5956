import { type TSchema, Type } from '@sinclair/typebox'
import { Nullable } from '#platform/typebox.ts'
import { leastMemoryRule, type ResourceName, resourceBounds } from '#settings/resources.ts'

/** Fields for limits, each of this kind. */
export const limitFields = <Field extends TSchema>(field: (name: ResourceName) => Field) => ({
  memory_mb: field('memory_mb'),
  cpus: field('cpus'),
  pids: field('pids'),
  disk_mb: field('disk_mb'),
})

const limitDescriptions: Record<ResourceName, string> = {
  memory_mb: 'Megabytes of memory. With less than the minimum OpenClaw ends at its first turn with a tool.',
  cpus: 'Processors, such as 0.5 or 2.',
  pids: 'Processes and threads.',
  disk_mb: 'Megabytes of its files.',
}

/** A number within the general bounds. */
export const limitOf = (name: ResourceName) =>
  (name === 'cpus' ? Type.Number : Type.Integer)({
    ...resourceBounds[name],
    ...(name === 'memory_mb' && { 'x-rule': `${leastMemoryRule}; leave it out, or send null, for the default` }),
    description: limitDescriptions[name],
  })

export const ResourceChanges = Nullable(
  Type.Object(
    limitFields((name) => Type.Optional(Nullable(limitOf(name)))),
    {
      additionalProperties: false,
      description:
        'What the agent may use. Sets the limits that are sent, removes those that are null, and keeps the others; null ' +
        'removes all. An agent without its own limit has that of the organization. A running agent gets the limits within ' +
        'seconds, without a restart; `limits` shows those that hold.',
    },
  ),
)
