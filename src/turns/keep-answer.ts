import type { FastifyReply } from 'fastify'
import type { Claim } from '#http/idempotency.ts'
import { jsonType } from './reply.ts'

/**
 * Keeps the answer of a turn, the JSON that its run returns, for the `Idempotency-Key` of its request. A turn without
 * an answer, or whose answer is not one to `keep`, frees the key, and so does one that its client leaves: a repetition
 * is another turn.
 */
export async function* keepAnswer<Piece, Json extends string | undefined>(
  run: AsyncGenerator<Piece, Json>,
  claim: Claim,
  keep: (json: string) => boolean = () => true,
): AsyncGenerator<Piece, Json> {
  let isKept = false
  try {
    const json = yield* run
    if (json !== undefined && keep(json)) {
      await claim.store(200, json)
      isKept = true
    }
    return json
  } finally {
    if (!isKept) await claim.release()
  }
}

/** Replies with a kept answer, or with the events of a stream in its place. */
export function replyAgain(reply: FastifyReply, answer: unknown, events: string | null) {
  reply.header('idempotent-replayed', 'true')
  if (events === null) return reply.type(jsonType).send(JSON.stringify(answer))
  return reply.type('text/event-stream').send(events)
}
