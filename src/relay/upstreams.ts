import { type Dispatcher, Pool } from 'undici'
import type { ModelProvider } from '#database/schema.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import { providerHosts } from '#openclaw/models/providers.ts'

const connectTimeoutMs = 10_000
/** As long as a turn may take: a model may think for minutes before its first byte. */
export const silenceMs = 15 * 60_000
/** Shorter than the vendors keep an unused connection. */
const keepAliveMs = 30_000

/** The connections to the vendors: one pool for each address, shared by all keys. */
export interface Upstreams {
  /**
   * The base URLs for the agents of a region, which is null for the region of rows without one; null for a region that
   * this process does not serve.
   */
  of(provider: ModelProvider, region: string | null): { pool: Dispatcher; basePath: string } | null
  close(): Promise<void>
}

export function createUpstreams(baseUrlsIn: (region: string | null) => BaseUrls | null): Upstreams {
  const pools = new Map<string, Pool>()
  const poolOf = (origin: string): Pool => {
    const known = pools.get(origin)
    if (known) return known
    const pool = new Pool(origin, {
      connections: null,
      allowH2: false,
      headersTimeout: silenceMs,
      bodyTimeout: silenceMs,
      keepAliveTimeout: keepAliveMs,
      connect: { timeout: connectTimeoutMs },
    })
    pools.set(origin, pool)
    return pool
  }
  return {
    of(provider, region) {
      const baseUrls = baseUrlsIn(region)
      if (!baseUrls) return null
      const { origin, pathname } = new URL(baseUrls[provider] ?? providerHosts[provider])
      return { pool: poolOf(origin), basePath: pathname.replace(/\/+$/, '') }
    },
    close: async () => void (await Promise.all(Array.from(pools.values(), (pool) => pool.destroy()))),
  }
}
