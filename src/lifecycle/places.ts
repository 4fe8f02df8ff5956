/** Beside those of one organization: so many leave room for others when all of three hang. */
const least = 8

/** The rows that one worker may hold at once: each has a place until its attempt ends. */
export interface Places {
  /** How many are free. */
  readonly free: number
  /** The organizations that may take no other place now. */
  full(): string[]
  take(organizationId: string): void
  leave(organizationId: string): void
}

/** The places of a worker with so many slots. */
export const placesOf = (slots: number) => 2 * slots + least

/**
 * Shares twice as many places as a worker has slots, and 8 more. An organization may hold as many as it leaves free:
 * one that hangs takes half of them, the next one half of the rest, and so on.
 */
export function createPlaces(slots: number): Places {
  let free = placesOf(slots)
  /** By organization. Entries are removed once they are 0. */
  const held = new Map<string, number>()
  return {
    get free() {
      return free
    },
    full: () => [...held].filter(([, places]) => places >= free).map(([organizationId]) => organizationId),
    take(organizationId) {
      free -= 1
      held.set(organizationId, (held.get(organizationId) ?? 0) + 1)
    },
    leave(organizationId) {
      free += 1
      const left = (held.get(organizationId) ?? 0) - 1
      if (left > 0) held.set(organizationId, left)
      else held.delete(organizationId)
    },
  }
}
