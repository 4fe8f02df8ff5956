/** How many warm instances a region keeps: a number, or `auto` for one while the host has the memory. */
export type WarmPoolSize = 'auto' | number

/** The accepted notation of WARM_POOL. */
export const warmPoolPattern = '^(auto|[0-9]{1,2}|100)$'

/** Parses the setting WARM_POOL, which was checked. */
export const readWarmPool = (text: string): WarmPoolSize => (text === 'auto' ? text : Number(text))
