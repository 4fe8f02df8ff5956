/** Extra capacity, so that three hanging organizations leave room for a fourth. */
const least = 8

/** The capacity of one worker: the rows that it may hold at once, each until its attempt ends. */
export interface Places {
  readonly free: number
  /** The organizations that may hold no more rows now. */
  full(): string[]
  take(organizationId: string): void
  leave(organizationId: string): void
}

/** The capacity of a worker with `slots` slots. */
export const placesOf = (slots: number) => 2 * slots + least

/**
 * Shares the capacity of a worker between organizations. An organization may hold as many rows as it leaves free: one
 * that hangs takes half, the next one half of the rest, and so on.
 */
export function createPlaces(slots: number): Places {
  let free = placesOf(slots)
  /** Rows held by organization. Entries are removed at 0. */
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
