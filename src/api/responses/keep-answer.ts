import type { FastifyReply } from 'fastify'
import type { Claim } from '#http/idempotency.ts'
import { jsonType } from '#turns/reply.ts'
import type { ResponseObject } from './format/response-schema.ts'
import { type ResponseEvent, serverSentEvent, terminalEvent } from './format/response-writer.ts'

/**
 * Keeps the response of a turn for the `Idempotency-Key` of its request once it has an answer. A turn that fails, is
 * cancelled or is left by its client frees the key: a repetition is another turn.
 */
export async function* keepAnswer(
  run: AsyncGenerator<ResponseEvent[], string>,
  claim: Claim,
): AsyncGenerator<ResponseEvent[], string> {
  let isKept = false
  try {
    const json = yield* run
    const { status } = JSON.parse(json) as ResponseObject
    if (status === 'completed' || status === 'incomplete') {
      await claim.store(200, json)
      isKept = true
    }
    return json
  } finally {
    if (!isKept) await claim.release()
  }
}

/** Replies with a kept response. As a stream it is the last event alone. */
export function replyAgain(reply: FastifyReply, response: ResponseObject, isStreamed: boolean) {
  reply.header('idempotent-replayed', 'true')
  if (!isStreamed) return reply.type(jsonType).send(JSON.stringify(response))
  return reply.type('text/event-stream').send(`${serverSentEvent(terminalEvent(response, 0))}data: [DONE]\n\n`)
}
