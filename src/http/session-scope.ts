import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/**
 * The sessions visible to a key: those with these ids, and those with the prefix. `main`, which all callers without a
 * session share, is included only by its id.
 */
export interface SessionScope {
  ids: readonly string[]
  /** null for none. */
  prefix: string | null
}

/** `scope` is null for a key that may use all sessions of its instances. */
export const isInScope = (scope: SessionScope | null, sessionId: string): boolean =>
  scope === null ||
  scope.ids.includes(sessionId) ||
  (scope.prefix !== null && sessionId !== 'main' && sessionId.startsWith(scope.prefix))

/** Throws AppError `session_not_found`, as for a session that does not exist. */
export function requireInScope(scope: SessionScope | null, sessionId: string): void {
  if (!isInScope(scope, sessionId)) throw new AppError('session_not_found', texts.sessionNotFound)
}

/** Whether every session of `inner` is one of `outer`. */
export const isWithin = (inner: SessionScope, outer: SessionScope | null): boolean =>
  outer === null ||
  (inner.ids.every((id) => isInScope(outer, id)) &&
    (inner.prefix === null || (outer.prefix !== null && inner.prefix.startsWith(outer.prefix))))
