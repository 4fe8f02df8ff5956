import { hash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from './errors.ts'
import { texts } from './texts.ts'

type Permission = 'read' | 'interact' | 'configure' | 'files' | 'channels'

/** Who may call a route: anybody, an organization's key, or also a scoped key that holds the permission. */
type Access = 'public' | 'org' | Permission

/** Whose key came with a request. An organization key may do everything in its organization. */
export interface Caller {
  organizationId: string
  keyId: string
}

/** Finds the caller that a key's SHA-256, in base64, belongs to; null when unknown or revoked. */
export type FindCaller = (keyHash: string) => Promise<Caller | null>

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** These routes are called with OpenAI clients: errors also carry `error: {message, type, code}`. */
    openaiErrors?: boolean
  }
  interface FastifyRequest {
    /** Set on every route whose access is not `public`. */
    caller: Caller
  }
}

/** What every key looks like: other text is refused without asking the database. */
const keyFormat = /^chd_(org|sk)_[0-9a-f]{64}$/

function presentedKey(request: FastifyRequest): string {
  const [scheme, key, more] = request.headers.authorization?.split(' ') ?? []
  if (scheme?.toLowerCase() !== 'bearer' || !key || more !== undefined) {
    throw new AppError('unauthenticated', texts.sendKey)
  }
  return key
}

/**
 * Checks the key of every request before its body is read. A route that declares no access stops the boot, so that
 * no route is public by accident. Adds the caller to `request`.
 */
export function useApiKeys(app: FastifyInstance, findCaller: FindCaller): void {
  app.decorateRequest('caller')
  app.addHook('onRoute', ({ method, url, config }) => {
    if (!config?.access) throw new Error(`${method} ${url} declares no access`)
  })
  app.addHook('onRequest', async (request) => {
    if (request.is404 || request.routeOptions.config.access === 'public') return
    const key = presentedKey(request)
    const caller = keyFormat.test(key) ? await findCaller(hash('sha256', key, 'base64')) : null
    if (!caller) throw new AppError('unauthenticated', texts.unknownKey)
    request.caller = caller
  })
}
