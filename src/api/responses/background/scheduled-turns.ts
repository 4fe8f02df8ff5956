import { toResponseId, toUuid } from '#api/responses/format/response-writer.ts'
import type { Db } from '#database/client.ts'
import type { Schedule } from '#schedules/store.ts'
import { type AcceptParts, acceptBackground } from './accept.ts'

/** A schedule acts for its instance, and not for a key, which may be revoked meanwhile. */
const caller = { token: null, sessions: null, instanceIds: null }

/** Begins the turns of schedules as background turns, and cancels them: what `beginSchedules` needs. */
export const createScheduledTurns = (parts: AcceptParts, wake: () => void) => ({
  async begin(tx: Db, { schedule, input }: { schedule: Schedule; input: string }): Promise<string> {
    const { organizationId, instanceId, sessionKey, model } = schedule
    const session = { organizationId, instanceId, sessionKey }
    const body = { model, input, background: true }
    const { id } = await acceptBackground(parts, { caller, session, body, into: tx })
    wake()
    return toUuid(id)
  },
  async cancel({ organizationId, instanceId }: Schedule, responseId: string): Promise<void> {
    await parts.store.cancel({ organizationId, instanceId, sessions: null }, toResponseId(responseId)).catch(() => {})
  },
  showId: toResponseId,
})
