import { hash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { formOf, type KeyForm } from './api-key.ts'
import type { Caller, FindCaller, FindTokenCaller, Permission } from './caller.ts'
import { instanceIdOf } from './instance-params.ts'
import type { RequestCounters } from './rate-limit.ts'
import { requireInScope } from './session-scope.ts'

/**
 * The key that a route needs: none, any key, an organization key, or also a scoped key with the permission on the
 * instance of the path.
 */
export type Access = 'public' | 'any' | 'org' | Permission

/** A sentence for the documentation. */
export function describeAccess(access: Access): string {
  if (access === 'public') return 'Needs no key.'
  if (access === 'any') return 'Needs any key, an organization key or a scoped one.'
  if (access === 'org') return 'Needs an organization key.'
  return `Needs an organization key, or a scoped key for the instance with the permission \`${access}\`.`
}

/** Throws AppError `instance_not_found` for an instance that is missing, or of another organization, and for a malformed id. */
type RequireInstance = (organizationId: string, instanceId: string) => Promise<unknown>

/** Finds the caller of a request, and its instance. */
export interface CallerDeps {
  findCaller: FindCaller
  findTokenCaller: FindTokenCaller
  requireInstance: RequireInstance
}

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /**
     * Location of the session for a route with the permission `interact` or `sessions` and no session in its path.
     * `main`: it is this one. `handler`: the handler checks `caller.sessions`. `none`: it concerns no session.
     */
    session?: 'main' | 'handler' | 'none'
    /** OpenAI clients call these routes: errors also have the fields of OpenAI's `error`. */
    openaiErrors?: boolean
    /** The route calls `onKeyRefused` itself, to report the reason to its client. */
    handlesRefusedKey?: boolean
  }
  interface FastifyRequest {
    /** Set on every route whose access is not `public`. */
    caller: Caller
  }
}

/** The likeliest mistakes: a key of a model provider, and an incompletely copied key. */
const refusals: Record<KeyForm, string> = {
  checked: texts.unknownKey,
  token: texts.unknownToken,
  malformed: texts.malformedKey,
  foreign: texts.foreignKey,
}

function bearerToken(request: FastifyRequest): string | null {
  const [scheme, key, more] = request.headers.authorization?.split(' ') ?? []
  return scheme?.toLowerCase() === 'bearer' && key && more === undefined ? key : null
}

/**
 * Throws an AppError of the kind `forbidden`, with the missing permission, when a scoped key may not make a call;
 * `instance_not_found` when the instance is of another organization, as if it did not exist.
 */
export async function authorize(
  { permissions, instanceIds, organizationId }: Caller,
  access: Exclude<Access, 'public'>,
  instanceId: string | undefined,
  requireInstance: RequireInstance,
): Promise<void> {
  if (permissions === null || access === 'any') return
  if (access === 'org') throw new AppError('lacks_permission', texts.needsOrganizationKey)
  if (instanceId !== undefined && !instanceIds?.includes(instanceId)) {
    await requireInstance(organizationId, instanceId)
    throw new AppError('lacks_permission', texts.notForInstance)
  }
  if (!permissions.includes(access)) throw new AppError('lacks_permission', texts.lacksPermission(access))
}

/** Callers are cached for up to 1 s. With this interval an open connection ends in under 5 s. */
const recheckEveryMs = 2000

/**
 * The checks of all open connections. They share one timer: one for each would be too expensive for a short request.
 */
const keyChecks = new Set<() => Promise<void>>()
setInterval(() => keyChecks.forEach((check) => void check()), recheckEveryMs).unref()

/**
 * Calls `end`, maybe more than once, when the key of a connection is revoked or expires, or its organization is
 * suspended, before the connection has closed. While the database is unavailable, keys stay valid.
 */
export function onKeyRefused(
  { keyHash, token }: Caller,
  connection: { on(event: 'close', listener: () => void): unknown },
  findCaller: FindCaller,
  end: (reason: AppError) => void,
): void {
  const check = async () => {
    try {
      const hasExpired = token !== null && performance.now() >= token.endsAt
      if (hasExpired || !(await findCaller(keyHash))) end(new AppError('invalid_api_key', texts.unknownKey))
    } catch (error) {
      if (error instanceof AppError) end(error)
    }
  }
  keyChecks.add(check)
  connection.on('close', () => keyChecks.delete(check))
}

/**
 * Checks the key of every request before its body is read, and adds its caller to `request`. When the key is refused
 * later, ends open requests: uploads, downloads and waits. A route that declares no access, or needs a permission and
 * has no `instance_id`, stops the start of the server.
 */
export function useApiKeys(
  app: FastifyInstance,
  { findCaller, findTokenCaller, requireInstance }: CallerDeps,
  counters: Pick<RequestCounters, 'countRequest' | 'countFailure'>,
): void {
  app.decorateRequest('caller')
  app.addHook('onRoute', ({ method, url, config }) => {
    const access = config?.access
    if (!access) throw new Error(`${method} ${url} declares no access`)
    if (!['public', 'any', 'org'].includes(access) && !url.includes('/:instance_id')) {
      throw new Error(`${method} ${url} needs a permission and has no instance_id`)
    }
    const isAboutSessions = access === 'interact' || access === 'sessions'
    if (isAboutSessions && !url.includes('/:session_id') && !config?.session) {
      throw new Error(`${method} ${url} does not say which session it is about`)
    }
  })
  async function callerOf(key: string, form: KeyForm): Promise<Caller | null> {
    if (form === 'token') return findTokenCaller(key)
    return form === 'checked' ? findCaller(hash('sha256', key, 'base64')) : null
  }
  app.addHook('onRequest', async (request, reply) => {
    const { access, handlesRefusedKey, session } = request.routeOptions.config
    if (request.is404 || access === undefined || access === 'public') return
    const key = bearerToken(request)
    const form = key === null ? null : formOf(key)
    const caller = key && form ? await callerOf(key, form) : null
    if (!caller) {
      await counters.countFailure(request, reply)
      throw form === null
        ? new AppError('missing_api_key', texts.sendKey)
        : new AppError('invalid_api_key', refusals[form])
    }
    request.caller = caller
    await counters.countRequest(request, reply)
    if (request.isOfForeignPage && caller.permissions === null)
      throw new AppError('lacks_permission', texts.needsScopedKey)
    if (caller.permissions !== null) await authorize(caller, access, instanceIdOf(request), requireInstance)
    if (caller.sessions !== null) {
      const { session_id: id = session === 'main' ? session : undefined } = request.params as { session_id?: string }
      if (id !== undefined) requireInScope(caller.sessions, id)
    }
    if (handlesRefusedKey || reply.raw.closed) return
    onKeyRefused(caller, reply.raw, findCaller, () => reply.raw.destroy())
  })
}
