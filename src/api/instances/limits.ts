import { type Static, Type } from '@sinclair/typebox'
import { limitFields, limitOf } from '#http/resource-fields.ts'
import { Nullable, OneOf } from '#platform/typebox.ts'
import type { ResourceName, HeldLimits as Stored } from '#settings/resources.ts'

const heldLimitOf = (name: ResourceName) =>
  Type.Object(
    {
      value: Type.Number({ description: 'The number that holds now.' }),
      kept_by: OneOf(
        ['kernel', 'watch', 'nothing'],
        '`kernel`: the agent cannot exceed it. `watch`: Chowder measures it every 30 seconds, and stops an agent that ' +
          'exceeds it. `nothing`: this server cannot limit it.',
      ),
    },
    { description: `${limitOf(name).description ?? ''}` },
  )

export const HeldLimits = Nullable(
  Type.Object(limitFields(heldLimitOf), {
    description: 'The limits that hold now; null before the first start.',
  }),
)

/**
 * Converts stored limits. Chowder enforces the disk limit; all other limits are effective only where the kernel
 * enforces them.
 */
export const toLimits = ({ asked, kept }: Stored): Static<typeof HeldLimits> => {
  const held = (name: keyof Stored['kept'], otherwise: 'watch' | 'nothing') => {
    const value = kept[name] ?? null
    return value === null ? { value: asked[name], kept_by: otherwise } : { value, kept_by: 'kernel' as const }
  }
  return {
    memory_mb: held('memory_mb', 'nothing'),
    cpus: held('cpus', 'nothing'),
    pids: held('pids', 'nothing'),
    disk_mb: held('disk_mb', 'watch'),
  }
}
