import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Dispatcher } from 'undici'
import { AppError } from '#errors/app-error.ts'
import type { ErrorCode } from '#errors/codes.ts'
import { texts } from '#errors/texts.ts'
import type { FindSummary, RunningGateway } from '#instances/find.ts'
import type { DeclareModel } from '#instances/gateway/declare-model.ts'
import { readFailedTurn } from '#openclaw/gateway/failed-turn.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { isObject } from '#openclaw/json.ts'
import { toGatewayModel } from '#openclaw/models/model.ts'
import { writeJson } from '#platform/json/thread.ts'
import { readBody } from '#platform/read-body.ts'
import { errorTexts } from './error-texts.ts'
import {
  type AgentEvent,
  brokenAnswer,
  maxAnswerBytes,
  readAnswer,
  readStream,
  type TurnEnd,
  type Usage,
} from './gateway-answer.ts'
import { type GatewayFailure, gatewayError, idIn, isSuspended, isUnexplained } from './gateway-errors.ts'
import { createGatewayPool, unreachable } from './gateway-pool.ts'
import { Turn, type TurnTimeouts, turnAbandoned, turnCancelled } from './turn.ts'

const maxErrorBytes = 64 * 1024
/** How many bytes after the end of a stream are read, and for how long, so that the gateway can finish sending. */
const maxRestBytes = 64 * 1024
const restTimeoutMs = 1000

const askRunTimeoutMs = 5000
/** A gateway that is suspended asks for this pause. */
const suspendedPauseMs = 1000
/** OpenClaw reports an error that it may still recover from only after a delay. */
const waitForRunMs = 50

/** A request to the agent of an instance. */
export interface AgentRequest {
  instanceId: string
  gateway: RunningGateway
  sessionKey: string
  /** The model as the caller named it. */
  model: string
  body: object
  isStreamed: boolean
  /** Called with OpenClaw's id of the turn, and of each repetition, when a stream begins. */
  onRun?: (runId: string) => void
  log: FastifyBaseLogger
}

interface TurnError {
  code: ErrorCode
  message: string
}

/** The end of a turn for its response, with the failure if it failed. */
interface TurnOutcome {
  status: 'completed' | 'incomplete' | 'failed' | 'cancelled'
  usage: Usage | null
  error: TurnError | null
  failure?: Error
}

export interface TurnRunner {
  /** Begins a turn, which ends when the server closes. Call `finish` once the turn has its answer, or needs none. */
  begin(): Turn
  finish(turn: Turn): void
  /** Ends a turn that waits to be asked when the gateway has not answered for long, or at the limit of turns. */
  watch(turn: Turn, request: AgentRequest): void
  /**
   * Sends the request, and resolves once the gateway begins to answer. Sends it once more if OpenClaw fails before it
   * begins the turn. Throws AppError when the gateway refuses or cannot be reached, and the turn's reason when the turn
   * was ended.
   */
  ask(turn: Turn, request: AgentRequest): Promise<AsyncIterable<AgentEvent[]>>
  outcome(turn: Turn, request: AgentRequest, end: TurnEnd): TurnOutcome
  /** The same for an end that needs no request. */
  outcomeOf(turn: Turn, end: Exclude<TurnEnd, { kind: 'failed' }>): TurnOutcome
  /** The error of a turn whose run has failed at its gateway, which gives no reason. */
  findFailure(turn: Turn, request: AgentRequest): Promise<AppError>
  /**
   * The server closes: refuses further turns, gives running ones `ms` to end by themselves, then ends them. Resolves
   * once none runs.
   */
  drain(ms: number): Promise<void>
  close(): Promise<void>
}

const sessionReset = () => new AppError('session_reset', errorTexts.sessionReset, { doNotRetry: true })

/** The headers for the gateway. They contain none of the client's own headers. */
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

interface RunnerDeps {
  declareModel: DeclareModel
  /** Asked after a failure only: whether the instance was stopped or restarted. */
  findSummary: FindSummary
  recordKeyRefusal(gateway: RunningGateway): Promise<void>
}

/** Runs turns of agents over connections to their gateways. */
export function createTurnRunner(
  timeouts: TurnTimeouts,
  { declareModel, findSummary, recordKeyRefusal }: RunnerDeps,
): TurnRunner {
  const gateways = createGatewayPool()
  const turns = new Set<Turn>()
  let drained: PromiseWithResolvers<void> | undefined

  /** The error for a failed request to the gateway: the reason of the turn if that was ended. */
  const explain = (turn: Turn, cause: unknown): Error => {
    if (turn.signal.aborted) return turn.signal.reason
    if (turn.isUnanswered) return turn.hung() // a worker has ended the gateway
    return cause instanceof AppError ? cause : unreachable(cause)
  }

  /** The error of a turn that failed because its instance was stopped or restarted; null for any other failure. */
  async function findEnding({ gateway, instanceId }: AgentRequest): Promise<AppError | null> {
    const summary = await findSummary(gateway.organizationId, instanceId).catch(() => null)
    if (!summary) return null
    if (summary.desiredState !== 'running') {
      return new AppError('instance_stopping', errorTexts.instanceStopping, { doNotRetry: true })
    }
    if (summary.restartGeneration === null || summary.readyAt !== null) return null
    return new AppError('instance_restarting', errorTexts.instanceRestarting, { doNotRetry: true })
  }

  function judge({ gateway, instanceId, log }: AgentRequest, failure: GatewayFailure): AppError {
    const { error, refusedChowder } = gatewayError(gateway.provider, failure)
    if (refusedChowder) log.error({ instanceId, status: failure.status }, "the gateway refused Chowder's own token")
    if (error.code === 'provider_key_refused') {
      recordKeyRefusal(gateway).catch((cause: unknown) =>
        log.warn({ err: cause }, 'failed to record the refusal of a provider key'),
      )
    }
    return error
  }

  async function refusal(turn: Turn, request: AgentRequest, failure: GatewayFailure): Promise<AppError> {
    const mustAsk = failure.status === 429 || isUnexplained(failure.body)
    const turnLeft = mustAsk ? await readFailedTurn(request.gateway, request.sessionKey, turn.signal) : null
    if (turnLeft?.isSessionGone) return sessionReset()
    return judge(request, { ...failure, ...turnLeft })
  }

  /**
   * Repeats a request whose run OpenClaw did not begin, so that no model was called. Returns null for any other
   * failure. Throws AppError turn_not_begun when the repetition fails in the same way.
   */
  async function repeat(turn: Turn, request: AgentRequest, runId: unknown, isRepetition: boolean) {
    const { gateway, instanceId, log } = request
    if (typeof runId !== 'string' || (await hasBegun(gateway, runId, turn.signal))) return null
    if (isRepetition) throw new AppError('turn_not_begun', errorTexts.notBegun, { retryAfterSeconds: 1 })
    log.info({ instanceId }, 'OpenClaw did not begin a turn, which is sent again')
    return send(turn, request, true)
  }

  async function send(turn: Turn, request: AgentRequest, isRepetition = false): Promise<AsyncIterable<AgentEvent[]>> {
    const { gateway, body } = request
    turn.signal.throwIfAborted()
    const json = await writeJson(body)
    const answer = await gateways.post(gateway.endpoint, headersOf(request), json, turn.signal)
    turn.received()
    if (answer.statusCode !== 200) {
      const failure = await readFailure(answer)
      // Before its gateway is asked about the turn: the answer may take as long as a restart.
      const ending = await findEnding(request)
      if (ending) throw ending
      if (isSuspended(failure) && !isRepetition) {
        await sleep(suspendedPauseMs, undefined, { signal: turn.signal })
        return send(turn, request, true)
      }
      const again = isUnexplained(failure.body) && (await repeat(turn, request, idIn(failure.body), isRepetition))
      if (again) return again
      throw await refusal(turn, request, failure)
    }
    if (String(answer.headers['content-type']).startsWith('text/event-stream')) {
      return streamedEvents(turn, request, answer.body, isRepetition)
    }
    const bytes = await readBody(answer.body, maxAnswerBytes, { onChunk: () => turn.received() })
    turn.answered()
    if (bytes === null) {
      answer.body.destroy()
      throw brokenAnswer(errorTexts.tooLarge)
    }
    return oneBatch(await readAnswer(bytes))
  }

  /**
   * Parses the events of a stream. A failure without a reason gets the reason from the session or, if it is the whole
   * stream and the turn did not begin, is replaced by the answer of a repetition. After the agent's end, the few bytes
   * that follow are discarded in the background, so that the gateway can finish sending. The body is destroyed when the
   * reader leaves earlier.
   */
  async function* streamedEvents(
    turn: Turn,
    request: AgentRequest,
    body: Dispatcher.ResponseData['body'],
    isRepetition: boolean,
  ): AsyncGenerator<AgentEvent[]> {
    const chunks: AsyncIterator<Buffer> = body.iterator({ destroyOnReturn: false })
    let readBytes = 0
    let hasOutput = false
    let hasEnded = false
    let ending: AppError | null = null
    async function* countedChunks(): AsyncGenerator<Buffer> {
      for (let chunk = await chunks.next(); !chunk.done; chunk = await chunks.next()) {
        turn.received()
        readBytes += chunk.value.length
        turn.signal.throwIfAborted()
        yield chunk.value
      }
    }
    try {
      for await (const batch of readStream(countedChunks(), request.onRun)) {
        const last = batch.at(-1)
        // Set before the yield: readers leave at the end.
        hasEnded = last?.kind === 'end' || last?.kind === 'failed'
        ending = last?.kind === 'failed' ? await findEnding(request) : null
        if (ending) throw ending
        if (last?.kind === 'failed' && isUnexplained(failedResponse(last.error))) {
          const isAll = batch.length === 1 && !hasOutput
          const again = isAll && (await repeat(turn, request, last.runId, isRepetition))
          if (again) return yield* again
          const { isSessionGone, note } = await readFailedTurn(request.gateway, request.sessionKey, turn.signal)
          ending = isSessionGone ? sessionReset() : null
          if (ending) throw ending
          last.note = note
        }
        hasOutput = true
        yield batch
      }
    } catch (cause) {
      throw turn.signal.aborted || ending ? cause : ((await findEnding(request)) ?? cause)
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

  function outcomeOf(turn: Turn, end: Exclude<TurnEnd, { kind: 'failed' }>): TurnOutcome {
    if (end.kind === 'end') return { status: end.status, usage: end.usage, error: null }
    const failure = explain(turn, end.cause)
    if (failure === turnCancelled) return { status: 'cancelled', error: null, usage: null }
    return { status: 'failed', error: responseError(failure), usage: null, failure }
  }

  const probeOf =
    ({ gateway }: AgentRequest) =>
    (options: { timeoutMs: number; signal: AbortSignal }) =>
      probeHealth(gateway.endpoint, '/healthz', options)

  const watch = (turn: Turn, request: AgentRequest) => turn.watch(probeOf(request))

  /** Fails a turn whose gateway was restarted while it waited. */
  async function requireAnswer(turn: Turn, request: AgentRequest): Promise<void> {
    const { signal } = turn
    if (!turn.isUnanswered || (await probeOf(request)({ timeoutMs: timeouts.probeEveryMs, signal }))) return
    throw turn.hung()
  }

  return {
    begin() {
      const turn = new Turn(timeouts)
      turns.add(turn)
      if (drained) turn.end(new AppError('shutting_down', errorTexts.shuttingDown, { retryAfterSeconds: 1 }))
      return turn
    },
    finish(turn) {
      turns.delete(turn)
      turn.finish()
      if (turns.size === 0) drained?.resolve()
    },
    watch,
    async ask(turn, request) {
      await declareModel(request.gateway, request.instanceId, request.model)
      turn.signal.throwIfAborted()
      await requireAnswer(turn, request)
      turn.ask()
      watch(turn, request)
      turn.waits()
      try {
        const events = await send(turn, request)
        turn.hasWaited()
        return events
      } catch (cause) {
        const isJudged = turn.signal.aborted || cause instanceof AppError
        throw (isJudged ? null : await findEnding(request)) ?? explain(turn, cause)
      }
    },
    outcomeOf,
    outcome(turn, request, end) {
      if (end.kind !== 'failed') return outcomeOf(turn, end)
      const error = judge(request, { status: undefined, body: failedResponse(end.error), note: end.note })
      return { status: 'failed', error: responseError(error), usage: end.usage, failure: error }
    },
    findFailure: async (turn, request) =>
      (await findEnding(request)) ??
      refusal(turn, request, { status: undefined, body: failedResponse({ message: 'internal error' }) }),
    async drain(ms) {
      drained ??= Promise.withResolvers()
      if (turns.size === 0) return
      const endAll = () => {
        const reason = new AppError('shutting_down', errorTexts.shuttingDown, { doNotRetry: true })
        for (const turn of turns) turn.end(reason)
      }
      if (ms === 0) endAll()
      const timer = setTimeout(endAll, ms)
      await drained.promise.finally(() => clearTimeout(timer))
    },
    close: () => gateways.close(),
  }
}

async function readFailure({ statusCode: status, headers, body }: Dispatcher.ResponseData): Promise<GatewayFailure> {
  const bytes = await readBody(body, maxErrorBytes)
  if (bytes === null) body.destroy()
  return { status, body: bytes && parseJson(bytes), retryAfter: headers['retry-after']?.toString() }
}

/** A failed response in the form of an unstreamed answer. */
const failedResponse = (error: unknown) => ({ object: 'response', error })

/**
 * Whether OpenClaw has begun a run that failed, and so may have called the model. For 10 minutes after its end it knows
 * the start of every begun run, by the run's id. A turn that fails during its preparation, e.g. because another one
 * changes its session at the same moment, has no start. True when this is uncertain.
 */
async function hasBegun({ endpoint, token }: RunningGateway, runId: string, signal: AbortSignal): Promise<boolean> {
  try {
    const limited = AbortSignal.any([signal, AbortSignal.timeout(askRunTimeoutMs)])
    const gateway = await connectGateway(endpoint, token, { signal: limited, timeoutMs: askRunTimeoutMs })
    try {
      const run = await gateway.call('agent.wait', { runId, timeoutMs: waitForRunMs }, { timeoutMs: askRunTimeoutMs })
      const isUnknown = isObject(run) && run.runId === runId && run.status === 'timeout'
      return !isUnknown || run.startedAt !== undefined || run.timeoutPhase !== undefined
    } finally {
      gateway.close()
    }
  } catch {
    return true
  }
}

async function* oneBatch(events: AgentEvent[]): AsyncGenerator<AgentEvent[]> {
  yield events
}

function responseError(failure: Error): TurnError {
  if (failure instanceof AppError) return { code: failure.code, message: failure.message }
  if (failure === turnAbandoned) return { code: 'client_left', message: errorTexts.clientLeft }
  return { code: 'internal', message: texts.internal }
}
