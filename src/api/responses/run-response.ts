import type { FastifyBaseLogger } from 'fastify'
import pTimeout from 'p-timeout'
import { logFailure } from '#http/failure-log.ts'
import type { RunningGateway } from '#instances/find.ts'
import { texts } from '#platform/texts.ts'
import { type AgentEvent, resultOf, type TurnEnd, writeOutput } from './format/agent-events.ts'
import { gatewayRequest } from './format/gateway-request.ts'
import { newResponseId } from './format/ids.ts'
import { noKnownItems, referencedIds, skipKnownItems } from './format/known-items.ts'
import { type CheckedRequest, readRequest } from './format/request.ts'
import type { CreateResponse } from './format/request-schema.ts'
import { failedWith, inProgress, nowInSeconds } from './format/response-object.ts'
import { type ResponseEvent, ResponseWriter } from './format/response-writer.ts'
import { storedInput } from './format/stored-input.ts'
import type { PlaceInLine, TurnLines } from './lines/turn-lines.ts'
import type { StartedResponse } from './store/response-rows.ts'
import type { ResponseStore } from './store/response-store.ts'
import type { SessionRef, Visible } from './store/session-history.ts'
import { type Turn, turnAbandoned, turnCancelled } from './turns/turn.ts'
import type { AgentAnswer, AgentRequest, TurnRunner } from './turns/turn-runner.ts'

/** How often, in ms, a stream whose turn waits sends a sign of life: less than the idle timeouts of common proxies. */
const signEveryMs = 15_000

/** A response while its turn runs. Read it once, with `json` or with `events`. */
export interface RunningResponse {
  /** Null for a stream whose turn waits for the earlier turns of its session. */
  answer: AgentAnswer | null
  /** Waits for the end of the turn and returns the response as JSON. Throws AppError when the turn failed. */
  json(): Promise<string>
  /**
   * The events of the response. The terminal one is the last, `response.failed` when the turn failed. While the turn
   * waits, a batch without events is a sign of life.
   */
  events(): AsyncGenerator<ResponseEvent[]>
}

export interface ResponseParts {
  turns: TurnRunner
  store: ResponseStore
  lines: TurnLines
}

interface ResponseOptions {
  session: SessionRef
  /** What exists for the caller. */
  visible: Visible
  gateway: RunningGateway
  body: CreateResponse
  isStreamed: boolean
  log: FastifyBaseLogger
  /** Called when the turn begins, after the earlier ones of its session have ended. */
  begin(): Promise<void>
}

/**
 * Runs one turn of an agent for a request to the Responses format. The store gets the response when the turn begins and
 * when it ends, however it ends, and at the latest when the turn is finished. The turn begins when the earlier turns of
 * its session have ended. Throws AppError when the request or an item that it refers to is invalid, when too many turns
 * wait, and when the gateway refuses or cannot be reached. Throws the turn's reason when the turn was ended. A stream
 * whose turn waits has begun for its client: it throws nothing, and its last event has the failure.
 */
export async function runResponse(
  { turns, store, lines }: ResponseParts,
  turn: Turn,
  options: ResponseOptions,
): Promise<RunningResponse> {
  const { gateway, body, log } = options
  const { instanceId } = options.session
  const request = readRequest(body, gateway)
  const draft = { id: newResponseId(), createdAt: nowInSeconds(), echo: request.echo }
  const writer = new ResponseWriter(draft)
  const agentRequest = await beginResponse(store, options, request, draft.id, writer)

  let isSettled = false
  let leaveLine = () => {}
  /** Stores the first end. Throws when the response has no JSON, after it was stored as failed. */
  const settle = (end: TurnEnd) => {
    const isFirst = !isSettled
    isSettled = true
    leaveLine()
    try {
      const outcome = turns.outcome(turn, agentRequest, end)
      const { events, response, json } = writer.end(outcome)
      if (isFirst) store.finish(response, json)
      return { events, json, failure: outcome.failure }
    } catch (error) {
      // Only tools can be nested too deeply for JSON.
      const response = { ...writer.object(internalError), tools: [] }
      if (isFirst) store.finish(response, JSON.stringify(response))
      throw error
    }
  }
  turn.onFinish = () => {
    if (isSettled) return
    try {
      settle({ kind: 'broken', cause: turnAbandoned })
    } catch (err) {
      log.warn({ err, instanceId }, 'the response of an abandoned turn could not be written as JSON')
    }
  }
  store.onCancelled(draft.id, () => turn.end(turnCancelled))

  /** Settles a turn that fails before its agent answers. A cancelled one has an answer: the end of its response. */
  const refuse = (cause: unknown): AgentAnswer => {
    if (cause === turnCancelled) return brokenOff(cause)
    settle({ kind: 'broken', cause })
    throw cause
  }
  const enteredAt = performance.now()
  const ask = async ({ mustWait, begun }: PlaceInLine): Promise<AgentAnswer> => {
    if (mustWait) turns.watch(turn, agentRequest)
    await begun
    const answer = await turns.ask(turn, agentRequest)
    return mustWait ? { ...answer, askedAt: enteredAt } : answer
  }
  const place = await lines.enter(turn, options.session).catch(refuse)
  const isPlace = 'leave' in place
  if (isPlace) leaveLine = place.leave
  const isQueued = isPlace && place.mustWait && options.isStreamed
  const asked = isPlace ? ask(place) : Promise.resolve(place)
  const answered = asked.catch(isQueued ? brokenOff : refuse)
  const answer = isQueued ? null : await answered
  const written = ({ events }: AgentAnswer) => writeOutput(events, (output) => writer.write(output))
  return {
    answer,
    async json() {
      const { json, failure } = settle(await resultOf(written(await answered)))
      if (failure) throw failure
      return json
    },
    async *events() {
      if (isQueued) {
        yield writer.queue()
        while (!(await isSettledWithin(answered, signEveryMs))) yield []
        yield writer.begin()
      } else {
        yield writer.start()
      }
      const { events, failure } = settle(yield* written(await answered))
      if (failure && failure !== turnAbandoned) logFailure(log, failure, { instanceId }, 'a streamed turn failed')
      yield events
    },
  }
}

/** Whether a promise that does not reject is settled within this time. */
const isSettledWithin = (promise: Promise<unknown>, milliseconds: number): Promise<boolean> =>
  pTimeout(
    promise.then(() => true),
    { milliseconds, fallback: () => false },
  )

/**
 * Stores that a response begins, and returns the request for its agent. The request leaves out the items that the
 * session already has.
 */
async function beginResponse(
  store: ResponseStore,
  { session, visible, gateway, body, isStreamed, log, begin }: ResponseOptions,
  request: CheckedRequest,
  id: string,
  writer: ResponseWriter,
): Promise<AgentRequest> {
  const { items, echo } = request
  const startedResponse = (answeredCallIds: string[]): StartedResponse => ({
    ...session,
    id,
    isStored: echo.store,
    response: () => writer.object(inProgress),
    input: () => storedInput(items),
    answeredCallIds,
  })
  const agentRequest = (offset: number): AgentRequest => ({
    instanceId: session.instanceId,
    gateway,
    sessionKey: session.sessionKey,
    model: body.model,
    isStreamed,
    log,
    begin,
    body: {
      ...gatewayRequest(request, offset),
      ...(typeof body.input === 'string' && { input: body.input }),
      ...(isStreamed && { stream: true }),
    },
  })

  const references = { ...referencedIds(items), previousId: echo.previous_response_id }
  if (references.previousId === null && references.itemIds.length + references.callIds.length === 0) {
    skipKnownItems(items, noKnownItems)
    const toSend = agentRequest(0)
    store.begin(startedResponse([]))
    return toSend
  }
  const { toSend } = await store.beginContinuation(session, references, visible, (known) => {
    const { offset, answeredCallIds } = skipKnownItems(items, known)
    return { ...startedResponse(answeredCallIds), toSend: agentRequest(offset) }
  })
  return toSend
}

const internalError = failedWith({ code: 'internal', message: texts.internal })

/** The answer of an agent whose turn was ended before the agent answered. */
function brokenOff(cause: unknown): AgentAnswer {
  const now = performance.now()
  const events: AsyncIterable<AgentEvent[]> = {
    [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(cause) }),
  }
  return { events, askedAt: now, answeredAt: now }
}
