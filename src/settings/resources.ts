/** The limits of an agent: their names in the API, in settings and in the database. */
export const resourceNames = ['memory_mb', 'cpus', 'pids', 'disk_mb'] as const
export type ResourceName = (typeof resourceNames)[number]
export type ResourceLimits = Record<ResourceName, number>

/** The limits of a sandbox: those last requested, and those that its platform enforces, null for none. */
export interface HeldLimits {
  asked: ResourceLimits
  kept: Record<Exclude<ResourceName, 'disk_mb'>, number | null> & { disk_mb?: number | null }
}

/**
 * The bounds of the values. OpenClaw has some 30 threads. On a busy machine with two processors the kernel killed it at
 * its first turn with a tool with 1536 MB, and not with 1664.
 */
export const resourceBounds: Record<ResourceName, { minimum: number; maximum: number }> = {
  memory_mb: { minimum: 1792, maximum: 4_194_304 },
  cpus: { minimum: 0.1, maximum: 1024 },
  pids: { minimum: 64, maximum: 1_000_000 },
  disk_mb: { minimum: 100, maximum: 1_000_000_000 },
}

/** For a setting that names only some. */
export const usualResources: ResourceLimits = { memory_mb: 2048, cpus: 2, pids: 512, disk_mb: 10_240 }

const maximaOf = ({ memory_mb, cpus, pids, disk_mb }: ResourceLimits): ResourceLimits => ({
  memory_mb: 4 * memory_mb,
  cpus: 4 * cpus,
  pids: 4 * pids,
  disk_mb: 4 * disk_mb,
})

export const usualMaxima = maximaOf(usualResources)

/** Explains the minimum memory; appended to the field name. */
export const leastMemoryRule = `must be at least ${resourceBounds.memory_mb.minimum}: OpenClaw needs that to use a tool`

/** Writes limits in the notation of settings. */
export const formatResources = (limits: Partial<ResourceLimits>): string =>
  resourceNames.flatMap((name) => (limits[name] === undefined ? [] : `${name}=${limits[name]}`)).join(',')

/** Parses a text such as `memory_mb=4096,cpus=2`; null if it is invalid, or has a number out of bounds. */
export function parseResources(text: string): Partial<ResourceLimits> | null {
  const limits: Partial<ResourceLimits> = {}
  for (const part of text.split(',')) {
    const [, name, number] = /^([a-z_]+)=(\d+(?:\.\d{1,3})?)$/.exec(part.trim()) ?? []
    const known = resourceNames.find((one) => one === name)
    if (!known || known in limits) return null
    const value = Number(number)
    const { minimum, maximum } = resourceBounds[known]
    if (value < minimum || value > maximum || (known !== 'cpus' && !Number.isInteger(value))) return null
    limits[known] = value
  }
  return limits
}

/** The accepted notation of `parseResources`, appended to the name of a setting. */
export const resourcesRule = (example: ResourceLimits): string =>
  `must have numbers for some of memory_mb, cpus, pids and disk_mb, such as ${formatResources(example)}; ` +
  `memory_mb ${leastMemoryRule}`

/** The limits of agents without their own, and the maxima for all. */
export interface ResourceSettings {
  defaults: ResourceLimits
  maxima: ResourceLimits
}

/** Parses the setting AGENT_RESOURCES: the maximum for an agent is four times as much. Null if it is invalid. */
export function readResourceSettings(text: string): ResourceSettings | null {
  const named = text === '' ? {} : parseResources(text)
  if (!named) return null
  const defaults = { ...usualResources, ...named }
  return { defaults, maxima: maximaOf(defaults) }
}
