import { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import { type FindCaller, onKeyRefused } from '#http/auth.ts'
import { clientLeft } from '#http/client-left.ts'
import { openStreams, turnAddedDuration } from '#platform/metrics.ts'
import { type Turn, turnAbandoned } from './turn.ts'
import type { AgentAnswer, TurnRunner } from './turn-runner.ts'

/** The content type of JSON that was not made by Fastify's serializer. */
export const jsonType = 'application/json; charset=utf-8'

interface TurnReplyDeps {
  turns: TurnRunner
  findCaller: FindCaller
  /** The time that a client has to read the rest of an answer after its turn was ended, in ms. */
  graceMs: number
}

/** The answer of a turn: a stream of server-sent events, or JSON. The answer of the agent is null while it waits. */
export type TurnContent = { answer: AgentAnswer | null } & (
  | { stream: AsyncIterable<string> }
  | { json(): Promise<string> }
)

/** Begins a turn that ends when its client leaves or its key is refused. */
function beginTurn(reply: FastifyReply, { turns, findCaller, graceMs }: TurnReplyDeps): Turn {
  const turn = turns.begin()
  const left = clientLeft(reply) // not request.signal, which fires as soon as the body is read
  if (left.aborted) {
    turn.end(turnAbandoned)
    turns.finish(turn)
    return turn
  }
  left.addEventListener('abort', () => turn.end(turnAbandoned))
  onKeyRefused(reply.request.caller, reply.raw, findCaller, (reason) => turn.end(reason))
  let cutOff: NodeJS.Timeout | undefined
  // A client that does not read would never see the end, and would keep the connection open.
  turn.signal.addEventListener('abort', () => {
    cutOff = setTimeout(() => reply.raw.destroy(), graceMs)
  })
  reply.raw.on('close', () => {
    clearTimeout(cutOff)
    turns.finish(turn)
  })
  return turn
}

/**
 * Observes the time that Chowder itself has added to a turn so far: all of it without the wait for the gateway, or for
 * the earlier turns of the session.
 */
function observeAddedDuration({ elapsedTime }: FastifyReply, answer: AgentAnswer | null): void {
  if (answer) turnAddedDuration.observe((elapsedTime - (answer.answeredAt - answer.askedAt)) / 1000)
}

/** A stream that counts as open until its last byte was read or its client left. */
function countedStream(content: AsyncIterable<string>): Readable {
  const stream = Readable.from(content, { objectMode: false })
  openStreams.inc()
  return stream.once('close', () => openStreams.dec())
}

/** Runs a turn and replies with its answer. Throws what `run` throws, unless the client has left. */
export async function replyWithTurn(
  reply: FastifyReply,
  deps: TurnReplyDeps,
  run: (turn: Turn) => Promise<TurnContent>,
) {
  const turn = beginTurn(reply, deps)
  try {
    const content = await run(turn)
    if ('stream' in content) {
      observeAddedDuration(reply, content.answer)
      return reply.type('text/event-stream').send(countedStream(content.stream))
    }
    const json = await content.json()
    observeAddedDuration(reply, content.answer)
    return reply.type(jsonType).send(json)
  } catch (error) {
    if (turn.signal.reason === turnAbandoned) return reply.hijack() // nobody reads an answer
    throw error
  }
}

/**
 * Formats batches of events as server-sent events. Events that arrive together are sent in one piece, then `last`. A
 * batch without events is a comment, so that no proxy takes the connection for idle.
 */
export async function* serverSentEvents<T>(
  batches: AsyncIterable<T[]>,
  format: (event: T) => string,
  last = '',
): AsyncGenerator<string> {
  for await (const batch of batches) yield batch.length === 0 ? ': waiting\n\n' : batch.map(format).join('')
  if (last !== '') yield last
}
