import type { SessionScope } from './session-scope.ts'

export type Permission = 'read' | 'interact' | 'sessions' | 'configure' | 'files' | 'channels' | 'approve'

/** The owner of the key that a request came with. */
export interface Caller {
  organizationId: string
  keyId: string
  /** Finds the caller again. */
  keyHash: string
  /** The grants of a scoped key; both null for an organization key, which has every permission on every instance. */
  permissions: readonly Permission[] | null
  instanceIds: readonly string[] | null
  /** The sessions that exist for the caller; null for all of its instances. */
  sessions: SessionScope | null
  /** Only of a client token. */
  token: ClientToken | null
}

/** Whether a caller has a permission, on the instances that it may use. */
export const hasPermission = ({ permissions }: Pick<Caller, 'permissions'>, permission: Permission): boolean =>
  permissions === null || permissions.includes(permission)

interface ClientToken {
  /** In ms since 1970, by the clock of the database. */
  expiresAt: number
  /** The end of the token by the monotonic clock of this process. */
  endsAt: number
  /** Names the person for the limits of requests; null when the token names none. */
  endUser: string | null
}

/**
 * Finds the caller that the SHA-256 of a key, in base64, belongs to; null for a key that is unknown, revoked or
 * expired. Throws AppError `organization_suspended` when the operator suspended the organization.
 */
export type FindCaller = (keyHash: string) => Promise<Caller | null>

/** Finds the caller that a client token stands for; null for one that is malformed or expired, or whose key is refused. */
export type FindTokenCaller = (token: string) => Promise<Caller | null>
