import type { FastifyReply } from 'fastify'
import { invalidField } from '#api/responses/format/invalid-field.ts'
import type { ResponseObject } from '#api/responses/format/response-schema.ts'
import { type ResponseEvent, serverSentEvent, terminalEvent, toUuid } from '#api/responses/format/response-writer.ts'
import { onKeyRefused } from '#http/auth.ts'
import { clientLeft } from '#http/client-left.ts'
import type { InFlight } from '#http/in-flight.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { sendEvents, serverSentEvents } from '#turns/reply.ts'
import type { Turns } from '#turns/turns.ts'
import type { BackgroundRows } from './background-rows.ts'
import { followEvents } from './event-stream.ts'

export interface FollowParts {
  rows: Pick<BackgroundRows, 'read'>
  findCaller: Turns['findCaller']
  inFlight: InFlight | undefined
  /** Aborted when the server closes. Clients then go on at another process, or after the restart. */
  closing: AbortSignal
}

/**
 * Replies with the events of a background response after number `after`, which lasts until its end or until the client
 * leaves. The turn goes on either way. `find` throws AppError not_found for a response that is gone.
 */
export async function replyWithEvents(
  reply: FastifyReply,
  { rows, findCaller, inFlight, closing }: FollowParts,
  { id, after, find }: { id: string; after: number; find: () => Promise<ResponseObject> },
) {
  const { caller } = reply.request
  const ended = new AbortController()
  const left = AbortSignal.any([clientLeft(reply), closing, ended.signal])
  const release = inFlight?.take('turns', caller.organizationId)
  reply.raw.on('close', () => release?.())
  onKeyRefused(caller, reply.raw, findCaller, (reason) => ended.abort(reason))
  const findEnd = async (): Promise<ResponseEvent | null> => {
    const response = await find()
    if (response.status === 'queued' || response.status === 'in_progress') {
      if (response.background) return null
      throw invalidField('stream', errorTexts.notStreamable, 'unsupported_value')
    }
    return terminalEvent(response, after + 1)
  }
  const events = followEvents(rows, { id: toUuid(id), after }, findEnd, left)
  const pieces = serverSentEvents(events, serverSentEvent, 'data: [DONE]\n\n')
  return sendEvents(reply, await pieces.next(), pieces)
}
