/** Extra places: with them a fourth organization has a place while three others hang. */
const least = 8

/** The attempts, or starts, that one worker may have at once: each has a place until it ends. */
export interface Places {
  readonly free: number
  /** The organizations that may hold no more rows now. */
  full(): string[]
  take(organizationId: string): void
  leave(organizationId: string): void
}

/** The places of a worker with this many slots. */
export const placesOf = (slots: number) => 2 * slots + least

/**
 * Shares places. An organization may hold as many as it leaves free: one that hangs takes half of them, the next one
 * half of the rest, and so on.
 */
export function createPlaces(count: number): Places {
  let free = count
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
