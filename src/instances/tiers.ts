import type { Tier } from '#database/schema.ts'

/** The maximum number of instances on each tier; null means no limit. */
export const instanceLimits: Record<Tier, number | null> = { shrimp: 1, crab: 10, lobster: 500, whale: null }
