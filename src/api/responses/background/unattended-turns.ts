import { toResponseId, toUuid } from '#api/responses/format/response-writer.ts'
import type { Db } from '#database/client.ts'
import type { TurnSession } from '#turns/admit.ts'
import { type AcceptParts, acceptBackground } from './accept.ts'

/** A schedule or a hook acts for its instance, and not for a key, which may be revoked meanwhile. */
const caller = { token: null, sessions: null, instanceIds: null }

interface UnattendedTurn extends TurnSession {
  model: string
  input: string
}

/** Background turns that no request asks for. */
export interface UnattendedTurns {
  /** Stores one in a transaction, and returns the id of its row. Throws AppError when it is refused. */
  begin(tx: Db, turn: UnattendedTurn): Promise<string>
  /** Cancels a response in progress; does nothing for one that has ended. */
  cancel(instance: Pick<TurnSession, 'organizationId' | 'instanceId'>, responseId: string): Promise<void>
  /** The id of a response for clients. */
  showId(responseId: string): string
}

export const createUnattendedTurns = (parts: AcceptParts, wake: () => void): UnattendedTurns => ({
  async begin(tx, { model, input, ...session }) {
    const body = { model, input, background: true }
    const { id } = await acceptBackground(parts, { caller, session, body, into: tx })
    wake()
    return toUuid(id)
  },
  async cancel({ organizationId, instanceId }, responseId) {
    await parts.store.cancel({ organizationId, instanceId, sessions: null }, toResponseId(responseId)).catch(() => {})
  },
  showId: toResponseId,
})
