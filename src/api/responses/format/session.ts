import { requireInScope, type SessionScope } from '#http/session-scope.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { invalidField } from './invalid-field.ts'
import type { CreateResponse } from './request-schema.ts'

/** The session id in the field `conversation`. */
export const conversationId = (conversation: NonNullable<CreateResponse['conversation']>): string =>
  typeof conversation === 'string' ? conversation : conversation.id

/**
 * The gateway's key of the session of a request. `conversation` selects the session when the path has none, which is
 * then `main` by default. Throws AppError invalid for a `conversation` that is no session id or contradicts the path,
 * and `session_not_found` for a session outside the scope of the caller.
 */
export function requestedSessionKey(
  { conversation }: Pick<CreateResponse, 'conversation'>,
  inPath: string | undefined,
  scope: SessionScope | null,
): string {
  const named = conversation == null ? undefined : conversationId(conversation)
  if (inPath !== undefined && named !== undefined && named !== inPath) {
    throw invalidField(
      'conversation',
      'must be the session in the path. Leave it out, or leave the session out of the path.',
    )
  }
  const id = inPath ?? named ?? 'main'
  requireInScope(scope, id)
  return inPath === undefined ? sessionKey(id, 'conversation') : sessionKey(id)
}
