export interface PlaceLimits {
  /** Calls of one instance at the same time. */
  perInstance: number
  /** Calls of all instances of one organization at the same time. */
  perOrganization: number
}

/** OpenClaw runs a few turns at a time. */
export const defaultPlaces: PlaceLimits = { perInstance: 32, perOrganization: 1000 }

/** Counts the open calls of instances and organizations. */
export interface Places {
  /** Takes a place for a call, and returns what gives it back; null when there is none. */
  take(instanceId: string, organizationId: string): (() => void) | null
}

export function createPlaces({ perInstance, perOrganization }: PlaceLimits): Places {
  const counts = new Map<string, number>()
  const add = (id: string, change: 1 | -1) => {
    const count = (counts.get(id) ?? 0) + change
    if (count === 0) counts.delete(id)
    else counts.set(id, count)
  }
  return {
    take(instanceId, organizationId) {
      if ((counts.get(instanceId) ?? 0) >= perInstance) return null
      if ((counts.get(organizationId) ?? 0) >= perOrganization) return null
      for (const id of [instanceId, organizationId]) add(id, 1)
      return () => {
        for (const id of [instanceId, organizationId]) add(id, -1)
      }
    },
  }
}
