import { type Dispatcher, Pool } from 'undici'
import { type ModelProvider, modelProviders } from '#database/schema.ts'
import type { BaseUrls } from '#openclaw/config.ts'
import { providerHosts } from '#openclaw/providers.ts'

const connectTimeoutMs = 10_000
/** As long as a turn may take: a model may think for minutes before its first byte. */
export const silenceMs = 15 * 60_000
/** Shorter than the vendors keep a connection that is not used. */
const keepAliveMs = 30_000

/** The connections to the vendors: one pool each, shared by all keys. */
export interface Upstreams {
  of(provider: ModelProvider): { pool: Dispatcher; basePath: string }
  close(): Promise<void>
}

export function createUpstreams(baseUrls: BaseUrls): Upstreams {
  const made = modelProviders.map((provider) => {
    const { origin, pathname } = new URL(baseUrls[provider] ?? providerHosts[provider])
    const pool = new Pool(origin, {
      connections: null,
      allowH2: false,
      headersTimeout: silenceMs,
      bodyTimeout: silenceMs,
      keepAliveTimeout: keepAliveMs,
      connect: { timeout: connectTimeoutMs },
    })
    return [provider, { pool, basePath: pathname.replace(/\/+$/, '') }] as const
  })
  const upstreams = Object.fromEntries(made) as Record<ModelProvider, { pool: Pool; basePath: string }>
  return {
    of: (provider) => upstreams[provider],
    close: async () => void (await Promise.all(made.map(([, { pool }]) => pool.destroy()))),
  }
}
