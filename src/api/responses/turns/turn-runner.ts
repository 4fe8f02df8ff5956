import type { FastifyBaseLogger } from 'fastify'
import { LRUCache } from 'lru-cache'
import type { Dispatcher } from 'undici'
import { errorTexts } from '#api/responses/format/error-texts.ts'
import {
  type AgentEvent,
  brokenAnswer,
  maxAnswerBytes,
  readAnswer,
  readStream,
  type TurnEnd,
} from '#api/responses/format/gateway-answer.ts'
import { cancelled, type Outcome } from '#api/responses/format/response-object.ts'
import type { RunningGateway } from '#instances/find.ts'
import { probeHealth } from '#openclaw/health.ts'
import { toGatewayModel } from '#openclaw/model.ts'
import { AppError } from '#platform/errors.ts'
import { failedTurn, gatewayError } from './gateway-errors.ts'
import { createGatewayPool, unreachable } from './gateway-pool.ts'
import { readBody } from './read-body.ts'
import { clientLeft, Turn, type TurnTimeouts, turnCancelled } from './turn.ts'

const maxErrorBytes = 64 * 1024
/** How long, and how much, is waited for after the end of an answer, so that its connection can be used again. */
const restMs = 1000
const restBytes = 64 * 1024

/** What an agent is asked. */
export interface AgentRequest {
  instanceId: string
  gateway: RunningGateway
  sessionKey: string
  /** As the caller named it. */
  model: string
  body: object
  isStreamed: boolean
  log: FastifyBaseLogger
}

/** An agent's answer: what it does, and from when to when the gateway was waited for, as `performance.now()` tells. */
export interface AgentAnswer {
  events: AsyncIterable<AgentEvent[]>
  askedAt: number
  /** At the head of a stream, at the end of a plain answer. */
  answeredAt: number
}

export interface TurnRunner {
  /** A turn that is ended when the server closes, or has ended if it does so already; `over` forgets it. */
  begin(): Turn
  finish(turn: Turn): void
  /**
   * Asks the gateway, and resolves once it agreed to answer. Throws AppError when it refuses or cannot be reached, the
   * turn's reason when that was ended.
   */
  ask(turn: Turn, question: AgentRequest): Promise<AgentAnswer>
  /** What the end of a turn comes to, for its response; with the failure if it is one. */
  outcome(turn: Turn, question: AgentRequest, end: TurnEnd): Outcome & { failure?: Error }
  /** Ends all turns, with the reason that the server closes. */
  endAll(): void
  close(): Promise<void>
}

/** All that goes upstream: nothing of the client's own headers. */
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

/** Talks to gateways for the routes. `keyCooldownMs` is how long one keeps a key aside after the provider refused it. */
export function createTurnRunner(times: TurnTimeouts, keyCooldownMs: number): TurnRunner {
  const gateways = createGatewayPool()
  const turns = new Set<Turn>()
  let isClosing = false
  const shuttingDown = () => new AppError('unavailable', errorTexts.shuttingDown, { doNotRetry: true })
  /** What the provider refused lately, by instance. */
  const refusals = new LRUCache<string, string>({ max: 10_000, ttl: keyCooldownMs })

  /** What a failure between here and the gateway means: the reason why we ended the turn, if we did. */
  const explain = (turn: Turn, cause: unknown): Error => {
    if (turn.signal.aborted) return turn.signal.reason
    return cause instanceof AppError ? cause : unreachable(cause)
  }

  async function refusal(
    { gateway, instanceId, log }: AgentRequest,
    answer: Dispatcher.ResponseData,
  ): Promise<AppError> {
    const { bytes } = await readBody(answer.body, maxErrorBytes)
    const retryAfter = answer.headers['retry-after']?.toString()
    const failure = { status: answer.statusCode, body: parseJson(bytes), retryAfter }
    const { error, refused } = gatewayError(gateway.provider, failure, refusals.get(instanceId))
    if (refused === 'provider') refusals.set(instanceId, error.message)
    if (refused === 'chowder') {
      log.error({ instanceId, status: answer.statusCode }, "the gateway refused Chowder's own token")
    }
    return error
  }

  /** Ends with the answer, and lets the few bytes behind it come after, so that the connection is not lost. */
  async function* events(turn: Turn, body: Dispatcher.ResponseData['body']): AsyncGenerator<AgentEvent[]> {
    const chunks: AsyncIterator<Buffer> = body.iterator({ destroyOnReturn: false })
    let readBytes = 0
    let isOver = false
    const heard: AsyncIterable<Buffer> = {
      [Symbol.asyncIterator]: () => ({
        async next() {
          const chunk = await chunks.next()
          turn.heard()
          readBytes += chunk.value?.length ?? 0
          return chunk
        },
      }),
    }
    try {
      for await (const batch of readStream(heard)) {
        // Whoever reads leaves with the end.
        const last = batch.at(-1)?.kind
        isOver = last === 'end' || last === 'failed'
        yield batch
      }
    } finally {
      if (!isOver) {
        body.destroy()
      } else {
        turn.answered()
        await chunks.return?.() // nothing flows into a dump as long as this listens
        const limit = readBytes + restBytes
        if (!body.destroyed) body.dump({ limit, signal: AbortSignal.timeout(restMs) }).catch(() => {})
      }
    }
  }

  return {
    begin() {
      const turn = new Turn(times)
      turns.add(turn)
      if (isClosing) turn.end(shuttingDown())
      return turn
    },
    finish(turn) {
      turns.delete(turn)
      turn.finish()
    },
    async ask(turn, question) {
      const { gateway, body } = question
      const headers = headersOf(question)
      turn.signal.throwIfAborted()
      const askedAt = performance.now()
      turn.watch((options) => probeHealth(gateway.endpoint, '/healthz', options))
      try {
        const answer = await gateways.post(gateway.endpoint, headers, JSON.stringify(body), turn.signal)
        turn.heard()
        if (answer.statusCode !== 200) throw await refusal(question, answer)
        if (String(answer.headers['content-type']).startsWith('text/event-stream')) {
          return { events: events(turn, answer.body), askedAt, answeredAt: performance.now() }
        }
        const { bytes, isWhole } = await readBody(answer.body, maxAnswerBytes, () => turn.heard())
        turn.answered()
        const answeredAt = performance.now()
        if (!isWhole) throw brokenAnswer(errorTexts.tooLarge)
        return { events: once(readAnswer(bytes)), askedAt, answeredAt }
      } catch (cause) {
        throw explain(turn, cause)
      }
    },
    outcome(turn, { gateway, instanceId }, end) {
      if (end.kind === 'end') {
        refusals.delete(instanceId)
        return { status: end.status, usage: end.usage, error: null }
      }
      if (end.kind === 'failed') {
        const { error, refused } = failedTurn(gateway.provider, end.error, refusals.get(instanceId))
        if (refused === 'provider') refusals.set(instanceId, error.message)
        return { ...failed(error), usage: end.usage, failure: error }
      }
      const failure = explain(turn, end.cause)
      return failure === turnCancelled ? cancelled : { ...failed(failure), failure }
    },
    endAll() {
      isClosing = true
      const reason = shuttingDown()
      for (const turn of turns) turn.end(reason)
    },
    close: () => gateways.close(),
  }
}

async function* once(events: AgentEvent[]): AsyncGenerator<AgentEvent[]> {
  yield events
}

function failed(failure: Error): Outcome {
  const error =
    failure instanceof AppError
      ? { code: failure.kind, message: failure.message }
      : failure === clientLeft
        ? { code: 'client_left', message: errorTexts.clientLeft }
        : { code: 'internal', message: 'Internal error.' }
  return { status: 'failed', usage: null, error }
}
