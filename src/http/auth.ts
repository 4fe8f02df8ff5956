import { hash } from 'node:crypto'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { instanceIdOf } from './instance-params.ts'
import type { AuthCounts } from './rate-limit.ts'

type Permission = 'read' | 'interact' | 'configure' | 'files' | 'channels'

/** Who may call a route: anybody, an organization's key, or also a scoped key that holds the permission. */
export type Access = 'public' | 'org' | Permission

/** The same for people to read. */
export function inWords(access: Access): string {
  if (access === 'public') return 'Needs no key.'
  if (access === 'org') return 'Needs an organization key.'
  return `Needs an organization key, or a scoped key for the instance with the permission \`${access}\`.`
}

/** Whose key came with a request. */
export interface Caller {
  organizationId: string
  keyId: string
  /** By which it can be found anew. */
  keyHash: string
  /** What a scoped key may do, on which instances; both null for an organization key, which may do everything. */
  permissions: readonly Permission[] | null
  instanceIds: readonly string[] | null
}

/**
 * Finds the caller that a key's SHA-256, in base64, belongs to; null when it is unknown, revoked or expired. Throws
 * AppError `forbidden` when the operator disabled its organization.
 */
export type FindCaller = (keyHash: string) => Promise<Caller | null>

/** Throws AppError `not_found` for an instance that is missing, malformed or another organization's. */
type RequireInstance = (organizationId: string, instanceId: string) => Promise<unknown>

declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** These routes are called with OpenAI clients: errors also carry `error: {message, type, code}`. */
    openaiErrors?: boolean
    /** The route calls `onceRefused` itself, to tell its client why it ends. */
    endsRefused?: boolean
  }
  interface FastifyRequest {
    /** Set on every route whose access is not `public`. */
    caller: Caller
  }
}

/** What every key looks like: other text is refused without asking the database. */
const keyFormat = /^chd_(org|sk)_[0-9a-f]{64}$/

function presentedKey(request: FastifyRequest): string | null {
  const [scheme, key, more] = request.headers.authorization?.split(' ') ?? []
  return scheme?.toLowerCase() === 'bearer' && key && more === undefined ? key : null
}

/**
 * Throws AppError `forbidden`, naming what is needed, when a scoped key may not make a call; `not_found` when the
 * instance is not its organization's, so that it cannot be told from one that never was.
 */
export async function authorize(
  { permissions, instanceIds, organizationId }: Caller,
  access: Exclude<Access, 'public'>,
  instanceId: string | undefined,
  requireInstance: RequireInstance,
): Promise<void> {
  if (permissions === null) return
  if (access === 'org') throw new AppError('forbidden', texts.needsOrganizationKey)
  if (instanceId !== undefined && !instanceIds?.includes(instanceId)) {
    await requireInstance(organizationId, instanceId)
    throw new AppError('forbidden', texts.notForInstance)
  }
  if (!permissions.includes(access)) throw new AppError('forbidden', texts.lacksPermission(access))
}

/** Callers are remembered for up to a second: with this a key that is refused from now on is cut off in under 5 s. */
const recheckEveryMs = 2000

/** All that are open, looked at by one timer: one each would be dear beside a short request. */
const openRequests = new Set<() => Promise<void>>()
setInterval(() => openRequests.forEach((look) => void look()), recheckEveryMs).unref()

/**
 * Calls `end`, maybe more than once, when a key is revoked, expires or is disabled before the connection it came with has
 * closed. A database that is away says nothing about a key.
 */
export function onceRefused(
  { keyHash }: Caller,
  connection: { on(event: 'close', listener: () => void): unknown },
  findCaller: FindCaller,
  end: (reason: AppError) => void,
): void {
  const look = async () => {
    try {
      if (!(await findCaller(keyHash))) end(new AppError('unauthenticated', texts.unknownKey))
    } catch (error) {
      if (error instanceof AppError) end(error)
    }
  }
  openRequests.add(look)
  connection.on('close', () => openRequests.delete(look))
}

/**
 * Checks the key of every request before its body is read, and cuts off what is still open when the key is refused
 * later: uploads, downloads and waits may take long. A route that declares no access, or one for scoped keys
 * without an `instance_id` to hold them to, stops the boot: no route is open by accident. Adds the caller to `request`.
 */
export function useApiKeys(
  app: FastifyInstance,
  findCaller: FindCaller,
  requireInstance: RequireInstance,
  counts: AuthCounts,
): void {
  app.decorateRequest('caller')
  app.addHook('onRoute', ({ method, url, config }) => {
    const access = config?.access
    if (!access) throw new Error(`${method} ${url} declares no access`)
    if (access !== 'public' && access !== 'org' && !url.includes('/:instance_id')) {
      throw new Error(`${method} ${url} is for scoped keys and has no instance_id`)
    }
  })
  app.addHook('onRequest', async (request, reply) => {
    const { access, endsRefused } = request.routeOptions.config
    if (request.is404 || access === undefined || access === 'public') return
    const key = presentedKey(request)
    const caller = key && keyFormat.test(key) ? await findCaller(hash('sha256', key, 'base64')) : null
    if (!caller) {
      await counts.countFailure(request, reply)
      throw new AppError('unauthenticated', key ? texts.unknownKey : texts.sendKey)
    }
    request.caller = caller
    await counts.countRequest(request, reply)
    if (caller.permissions !== null) await authorize(caller, access, instanceIdOf(request), requireInstance)
    if (!endsRefused && !reply.raw.closed) onceRefused(caller, reply.raw, findCaller, () => reply.raw.destroy())
  })
}
