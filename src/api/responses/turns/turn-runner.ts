import type { FastifyBaseLogger } from 'fastify'
import type { Dispatcher } from 'undici'
import { type AgentEvent, brokenAnswer, type TurnEnd } from '#api/responses/format/agent-events.ts'
import { errorTexts } from '#api/responses/format/error-texts.ts'
import { maxAnswerBytes, readAnswer, readStream } from '#api/responses/format/gateway-answer.ts'
import { cancelled, failedWith, type Outcome } from '#api/responses/format/response-object.ts'
import type { ResponseError } from '#api/responses/format/response-schema.ts'
import type { RunningGateway } from '#instances/find.ts'
import { readFailedTurn } from '#openclaw/failed-turn.ts'
import { probeHealth } from '#openclaw/health.ts'
import { toGatewayModel } from '#openclaw/model.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { type GatewayFailure, gatewayError, isUnexplained } from './gateway-errors.ts'
import { createGatewayPool, unreachable } from './gateway-pool.ts'
import { readBody } from './read-body.ts'
import { Turn, type TurnTimeouts, turnAbandoned, turnCancelled } from './turn.ts'

const maxErrorBytes = 64 * 1024
/** Bytes after the end of a stream that are read, and for how long, so that the connection can be used again. */
const maxRestBytes = 64 * 1024
const restTimeoutMs = 1000

/** A request to the agent of an instance. */
export interface AgentRequest {
  instanceId: string
  gateway: RunningGateway
  sessionKey: string
  /** The model as the caller named it. */
  model: string
  body: object
  isStreamed: boolean
  log: FastifyBaseLogger
}

/** The answer of an agent. */
export interface AgentAnswer {
  events: AsyncIterable<AgentEvent[]>
  /** The time, by `performance.now()`, at which the request was sent. */
  askedAt: number
  /** The time at which the headers of a stream, or the whole of a plain answer, had arrived. */
  answeredAt: number
}

export interface TurnRunner {
  /** Begins a turn, which ends when the server closes. Call `finish` when nobody waits for it any more. */
  begin(): Turn
  finish(turn: Turn): void
  /**
   * Sends the request, and resolves once the gateway begins to answer. Throws AppError when the gateway refuses or
   * cannot be reached, and the turn's reason when the turn was ended.
   */
  ask(turn: Turn, request: AgentRequest): Promise<AgentAnswer>
  /** The outcome for a response whose turn ended like this, with the failure if it is one. */
  outcome(turn: Turn, request: AgentRequest, end: TurnEnd): Outcome & { failure?: Error }
  /** Ends all turns, and those that begin later, because the server closes. */
  endAll(): void
  close(): Promise<void>
}

/** The headers for the gateway. None of the client's own headers are among them. */
function headersOf({ gateway, sessionKey, model, isStreamed }: AgentRequest) {
  const gatewayModel = toGatewayModel(gateway.provider, model)
  return {
    authorization: `Bearer ${gateway.token}`,
    accept: isStreamed ? 'text/event-stream' : 'application/json',
    'x-openclaw-session-key': sessionKey,
    ...(gatewayModel === null ? {} : { 'x-openclaw-model': gatewayModel }),
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
}

/** Runs turns of agents over connections to their gateways. */
export function createTurnRunner(timeouts: TurnTimeouts): TurnRunner {
  const gateways = createGatewayPool()
  const turns = new Set<Turn>()
  let isClosing = false
  const shuttingDown = () => new AppError('shutting_down', errorTexts.shuttingDown, { doNotRetry: true })

  /** The error for a failed request to the gateway: the reason of the turn if that was ended. */
  const explain = (turn: Turn, cause: unknown): Error => {
    if (turn.signal.aborted) return turn.signal.reason
    return cause instanceof AppError ? cause : unreachable(cause)
  }

  function judge({ gateway, instanceId, log }: AgentRequest, failure: GatewayFailure): AppError {
    const { error, refusedChowder } = gatewayError(gateway.provider, failure)
    if (refusedChowder) log.error({ instanceId, status: failure.status }, "the gateway refused Chowder's own token")
    return error
  }

  async function refusal(turn: Turn, request: AgentRequest, answer: Dispatcher.ResponseData): Promise<AppError> {
    const { statusCode: status } = answer
    const { bytes } = await readBody(answer.body, maxErrorBytes)
    const body = parseJson(bytes)
    const mustAsk = status === 429 || isUnexplained(body)
    const turnLeft = mustAsk && (await readFailedTurn(request.gateway, request.sessionKey, turn.signal))
    return judge(request, { status, body, retryAfter: answer.headers['retry-after']?.toString(), ...turnLeft })
  }

  return {
    begin() {
      const turn = new Turn(timeouts)
      turns.add(turn)
      if (isClosing) turn.end(shuttingDown())
      return turn
    },
    finish(turn) {
      turns.delete(turn)
      turn.finish()
    },
    async ask(turn, request) {
      const { gateway, body } = request
      const headers = headersOf(request)
      turn.signal.throwIfAborted()
      const askedAt = performance.now()
      turn.watch((options) => probeHealth(gateway.endpoint, '/healthz', options))
      try {
        const answer = await gateways.post(gateway.endpoint, headers, JSON.stringify(body), turn.signal)
        turn.received()
        if (answer.statusCode !== 200) throw await refusal(turn, request, answer)
        if (String(answer.headers['content-type']).startsWith('text/event-stream')) {
          const note = async () => (await readFailedTurn(gateway, request.sessionKey, turn.signal)).note
          return { events: streamedEvents(turn, answer.body, note), askedAt, answeredAt: performance.now() }
        }
        const { bytes, isWhole } = await readBody(answer.body, maxAnswerBytes, () => turn.received())
        turn.answered()
        const answeredAt = performance.now()
        if (!isWhole) throw brokenAnswer(errorTexts.tooLarge)
        return { events: oneBatch(readAnswer(bytes)), askedAt, answeredAt }
      } catch (cause) {
        throw explain(turn, cause)
      }
    },
    outcome(turn, request, end) {
      if (end.kind === 'end') return { status: end.status, usage: end.usage, error: null }
      if (end.kind === 'failed') {
        const error = judge(request, { status: undefined, body: failedResponse(end.error), note: end.note })
        return { ...failedWith(responseError(error)), usage: end.usage, failure: error }
      }
      const failure = explain(turn, end.cause)
      return failure === turnCancelled ? cancelled : { ...failedWith(responseError(failure)), failure }
    },
    endAll() {
      isClosing = true
      const reason = shuttingDown()
      for (const turn of turns) turn.end(reason)
    },
    close: () => gateways.close(),
  }
}

/** A failed response, as the answer to a turn that is not streamed has it. */
const failedResponse = (error: unknown) => ({ object: 'response', error })

/**
 * Reads the events of a stream. The end of a turn that failed without a reason gets OpenClaw's note. After the agent's
 * end it discards the few bytes that follow in the background, so that the connection can be used again. It destroys
 * the body when the reader leaves earlier.
 */
async function* streamedEvents(
  turn: Turn,
  body: Dispatcher.ResponseData['body'],
  note: () => Promise<string | null>,
): AsyncGenerator<AgentEvent[]> {
  const chunks: AsyncIterator<Buffer> = body.iterator({ destroyOnReturn: false })
  let readBytes = 0
  let hasEnded = false
  const watched: AsyncIterable<Buffer> = {
    [Symbol.asyncIterator]: () => ({
      async next() {
        const chunk = await chunks.next()
        turn.received()
        readBytes += chunk.value?.length ?? 0
        return chunk
      },
    }),
  }
  try {
    for await (const batch of readStream(watched)) {
      const last = batch.at(-1)
      // Set before the yield: readers leave at the end.
      hasEnded = last?.kind === 'end' || last?.kind === 'failed'
      if (last?.kind === 'failed' && isUnexplained(failedResponse(last.error))) last.note = await note()
      yield batch
    }
  } finally {
    if (!hasEnded) {
      body.destroy()
    } else {
      turn.answered()
      await chunks.return?.() // a dump gets no bytes while this iterator is open
      const limit = readBytes + maxRestBytes
      if (!body.destroyed) body.dump({ limit, signal: AbortSignal.timeout(restTimeoutMs) }).catch(() => {})
    }
  }
}

async function* oneBatch(events: AgentEvent[]): AsyncGenerator<AgentEvent[]> {
  yield events
}

function responseError(failure: Error): ResponseError {
  if (failure instanceof AppError) return { code: failure.code, message: failure.message }
  if (failure === turnAbandoned) return { code: 'client_left', message: errorTexts.clientLeft }
  return { code: 'internal', message: texts.internal }
}
