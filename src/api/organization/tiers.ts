import type { Tier } from '#database/schema.ts'

/** Most instances that may exist at once on each tier; null is no limit. */
export const instanceLimits: Record<Tier, number | null> = { shrimp: 1, crab: 10, lobster: 500, whale: null }
