import { hash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { formOf, type KeyForm } from './api-key.ts'
import { instanceIdOf } from './instance-params.ts'
import type { RequestCounters } from './rate-limit.ts'

type Permission = 'read' | 'interact' | 'configure' | 'files' | 'channels'

/**
 * The key that a route needs: none, any key, an organization key, or also a scoped key that has the permission on the
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

/** The owner of the key that a request came with. */
export interface Caller {
  organizationId: string
  keyId: string
  /** Finds the caller again. */
  keyHash: string
  /** The grants of a scoped key; both null for an organization key, which has every permission on every instance. */
  permissions: readonly Permission[] | null
  instanceIds: readonly string[] | null
}

/**
 * Finds the caller that the SHA-256 of a key, in base64, belongs to; null for a key that is unknown, revoked or
 * expired. `hasChecksum` is false for a key without one, which an installation need not have: then it is null without
 * a query. Throws AppError `organization_disabled` when the operator disabled the organization.
 */
export type FindCaller = (keyHash: string, hasChecksum?: boolean) => Promise<Caller | null>

/** Throws AppError `instance_not_found` for an instance that is missing, or of another organization, and for a malformed id. */
type RequireInstance = (organizationId: string, instanceId: string) => Promise<unknown>

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** OpenAI clients call these routes: errors also have the fields of OpenAI's `error`. */
    openaiErrors?: boolean
    /** The route calls `onKeyRefused` itself, to send its client the reason. */
    handlesRefusedKey?: boolean
  }
  interface FastifyRequest {
    /** Set on every route whose access is not `public`. */
    caller: Caller
  }
}

/** The likeliest mistakes are a key of a model provider, and one that was not copied whole. */
const refusals: Record<KeyForm, string> = {
  checked: texts.unknownKey,
  unchecked: texts.unknownKey,
  malformed: texts.malformedKey,
  foreign: texts.foreignKey,
}

function bearerToken(request: FastifyRequest): string | null {
  const [scheme, key, more] = request.headers.authorization?.split(' ') ?? []
  return scheme?.toLowerCase() === 'bearer' && key && more === undefined ? key : null
}

/**
 * Throws an AppError of the kind `forbidden`, which names what is needed, when a scoped key may not make a call;
 * `instance_not_found` when the instance is of another organization, as if it did not exist.
 */
export async function authorize(
  { permissions, instanceIds, organizationId }: Caller,
  access: Exclude<Access, 'public'>,
  instanceId: string | undefined,
  requireInstance: RequireInstance,
): Promise<void> {
  if (permissions === null || access === 'any') return
  if (access === 'org') throw new AppError('needs_organization_key', texts.needsOrganizationKey)
  if (instanceId !== undefined && !instanceIds?.includes(instanceId)) {
    await requireInstance(organizationId, instanceId)
    throw new AppError('key_not_for_instance', texts.notForInstance)
  }
  if (!permissions.includes(access)) throw new AppError('lacks_permission', texts.lacksPermission(access))
}

/** Processes remember callers for up to a second. With this interval an open connection ends in under 5 s. */
const recheckEveryMs = 2000

/** The checks of all open connections. They share one timer: a timer each costs too much beside a short request. */
const keyChecks = new Set<() => Promise<void>>()
setInterval(() => keyChecks.forEach((check) => void check()), recheckEveryMs).unref()

/**
 * Calls `end`, maybe more than once, when the key of a connection is revoked, expires or is disabled before the
 * connection has closed. While the database is unavailable, keys stay valid.
 */
export function onKeyRefused(
  { keyHash }: Caller,
  connection: { on(event: 'close', listener: () => void): unknown },
  findCaller: FindCaller,
  end: (reason: AppError) => void,
): void {
  const check = async () => {
    try {
      if (!(await findCaller(keyHash))) end(new AppError('invalid_api_key', texts.unknownKey))
    } catch (error) {
      if (error instanceof AppError) end(error)
    }
  }
  keyChecks.add(check)
  connection.on('close', () => keyChecks.delete(check))
}

/**
 * Checks the key of every request before its body is read, and adds its caller to `request`. When the key is refused
 * later, it ends the requests that are still open: uploads, downloads and waits. A route that declares no access, or
 * needs a permission and has no `instance_id`, stops the start of the server.
 */
export function useApiKeys(
  app: FastifyInstance,
  findCaller: FindCaller,
  requireInstance: RequireInstance,
  counters: Pick<RequestCounters, 'countRequest' | 'countFailure'>,
): void {
  app.decorateRequest('caller')
  app.addHook('onRoute', ({ method, url, config }) => {
    const access = config?.access
    if (!access) throw new Error(`${method} ${url} declares no access`)
    if (!['public', 'any', 'org'].includes(access) && !url.includes('/:instance_id')) {
      throw new Error(`${method} ${url} needs a permission and has no instance_id`)
    }
  })
  app.addHook('onRequest', async (request, reply) => {
    const { access, handlesRefusedKey } = request.routeOptions.config
    if (request.is404 || access === undefined || access === 'public') return
    const key = bearerToken(request)
    const form = key === null ? null : formOf(key)
    const isKey = form === 'checked' || form === 'unchecked'
    const caller = key && isKey ? await findCaller(hash('sha256', key, 'base64'), form === 'checked') : null
    if (!caller) {
      await counters.countFailure(request, reply)
      throw form === null
        ? new AppError('missing_api_key', texts.sendKey)
        : new AppError('invalid_api_key', refusals[form])
    }
    request.caller = caller
    await counters.countRequest(request, reply)
    if (request.isOfForeignPage && caller.permissions === null)
      throw new AppError('needs_scoped_key', texts.needsScopedKey)
    if (caller.permissions !== null) await authorize(caller, access, instanceIdOf(request), requireInstance)
    if (handlesRefusedKey || reply.raw.closed) return
    onKeyRefused(caller, reply.raw, findCaller, () => reply.raw.destroy())
  })
}
