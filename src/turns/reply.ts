import { Readable } from 'node:stream'
import type { FastifyReply } from 'fastify'
import { onKeyRefused } from '#http/auth.ts'
import type { FindCaller } from '#http/caller.ts'
import { clientLeft } from '#http/client-left.ts'
import { openStreams, turnAddedDuration } from '#platform/metrics.ts'
import type { TurnRunner } from './runner.ts'
import { type Turn, turnAbandoned } from './turn.ts'

/** The content type of JSON that was not made by Fastify's serializer. */
export const jsonType = 'application/json; charset=utf-8'

interface TurnDeps {
  runner: TurnRunner
  findCaller: FindCaller
  /** The time for a client to read the rest of an answer after its turn was ended, in ms. */
  graceMs: number
}

/** Begins a turn that ends when the client of a request leaves or its key is refused. */
export function beginTurn(reply: FastifyReply, { runner, findCaller, graceMs }: TurnDeps): Turn {
  const turn = runner.begin()
  const left = clientLeft(reply) // not request.signal, which fires as soon as the body is read
  if (left.aborted) {
    turn.end(turnAbandoned)
    runner.finish(turn)
    return turn
  }
  left.addEventListener('abort', () => turn.end(turnAbandoned))
  onKeyRefused(reply.request.caller, reply.raw, findCaller, (reason) => turn.end(reason))
  let cutOff: NodeJS.Timeout | undefined
  // A client that does not read would miss the end, and keep the connection open.
  turn.signal.addEventListener('abort', () => {
    cutOff = setTimeout(() => reply.raw.destroy(), graceMs)
  })
  reply.raw.on('close', () => {
    clearTimeout(cutOff)
    runner.finish(turn)
  })
  return turn
}

/** A run of a turn: yields the pieces of a stream, or returns JSON without any. */
type TurnRun = AsyncGenerator<string, string | undefined>

/**
 * Replies with the output of a run, as server-sent events, or with the JSON that it returns. Throws errors of the run
 * before its first piece, unless the client has left.
 */
export async function replyWithTurn(reply: FastifyReply, turn: Turn, run: TurnRun) {
  try {
    const first = await run.next()
    const { waitedMs } = turn
    if (waitedMs !== null) turnAddedDuration.observe((reply.elapsedTime - waitedMs) / 1000)
    if (first.done) return reply.type(jsonType).send(first.value)
    return sendEvents(reply, first, run)
  } catch (error) {
    if (turn.signal.reason === turnAbandoned) return reply.hijack() // the client is gone
    throw error
  }
}

/** Replies with server-sent events: a piece that was taken already, and those that follow. */
export const sendEvents = (
  reply: FastifyReply,
  first: IteratorResult<string, unknown>,
  pieces: AsyncGenerator<string, unknown>,
) => reply.type('text/event-stream').send(countedStream(first, pieces))

/** A stream that counts as open until its last byte was read or its client left. */
function countedStream(first: IteratorResult<string, unknown>, run: AsyncGenerator<string, unknown>): Readable {
  let unread: IteratorResult<string, unknown> | null = first
  const pieces = {
    async next() {
      const step = unread ?? (await run.next())
      unread = null
      return step
    },
    return: () => run.return(undefined), // a generator in its place would not pass this on before its first step
  }
  const stream = Readable.from({ [Symbol.asyncIterator]: () => pieces }, { objectMode: false })
  openStreams.inc()
  return stream.once('close', () => openStreams.dec())
}

/**
 * Formats batches of events as server-sent events, then `last`. Events that arrive together are sent in one piece. A
 * batch without events becomes a comment, which keeps proxies from closing an idle connection. Returns the result of
 * `batches`.
 */
export async function* serverSentEvents<T, End>(
  batches: AsyncGenerator<T[], End>,
  format: (event: T) => string,
  last = '',
): AsyncGenerator<string, End> {
  let hasYielded = false
  try {
    for (;;) {
      const step = await batches.next()
      if (step.done) {
        if (hasYielded && last !== '') yield last
        return step.value
      }
      hasYielded = true
      yield step.value.length === 0 ? ': waiting\n\n' : step.value.map(format).join('')
    }
  } finally {
    await batches.return(undefined as End)
  }
}
