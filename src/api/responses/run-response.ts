import type { FastifyBaseLogger } from 'fastify'
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
import type { StartedResponse } from './store/response-rows.ts'
import type { ResponseStore } from './store/response-store.ts'
import type { SessionRef } from './store/session-history.ts'
import { type Turn, turnAbandoned, turnCancelled } from './turns/turn.ts'
import type { AgentAnswer, AgentRequest, TurnRunner } from './turns/turn-runner.ts'

/** A response while its turn runs. Read it once, with `json` or with `events`. */
export interface RunningResponse {
  answer: AgentAnswer
  /** Waits for the end of the turn and returns the response as JSON. Throws AppError when the turn failed. */
  json(): Promise<string>
  /** The events of the response. The terminal one is the last, `response.failed` when the turn failed. */
  events(): AsyncGenerator<ResponseEvent[]>
}

interface ResponseOptions {
  session: SessionRef
  gateway: RunningGateway
  body: CreateResponse
  isStreamed: boolean
  log: FastifyBaseLogger
}

/**
 * Runs one turn of an agent for a request to the Responses format. The store gets the response when the turn begins and
 * when it ends, however it ends, and at the latest when the turn is finished. Throws AppError when the request or an
 * item that it refers to is invalid, and when the gateway refuses or cannot be reached. Throws the turn's reason when
 * the turn was ended.
 */
export async function runResponse(
  turns: TurnRunner,
  store: ResponseStore,
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
  /** Stores the first end. Throws when the response has no JSON, after it was stored as failed. */
  const settle = (end: TurnEnd) => {
    const isFirst = !isSettled
    isSettled = true
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

  const answer = await turns.ask(turn, agentRequest).catch((cause) => {
    if (cause === turnCancelled) return brokenOff(cause)
    settle({ kind: 'broken', cause })
    throw cause
  })
  const writtenOutput = () => writeOutput(answer.events, (output) => writer.write(output))
  return {
    answer,
    async json() {
      const { json, failure } = settle(await resultOf(writtenOutput()))
      if (failure) throw failure
      return json
    },
    async *events() {
      yield writer.start()
      const { events, failure } = settle(yield* writtenOutput())
      if (failure) log.warn({ err: failure, instanceId }, 'a streamed turn failed')
      yield events
    },
  }
}

/**
 * Stores that a response begins, and returns the request for its agent. The request leaves out the items that the
 * session already has.
 */
async function beginResponse(
  store: ResponseStore,
  { session, gateway, body, isStreamed, log }: ResponseOptions,
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
  const { toSend } = await store.beginContinuation(session, references, (known) => {
    const { offset, answeredCallIds } = skipKnownItems(items, known)
    return { ...startedResponse(answeredCallIds), toSend: agentRequest(offset) }
  })
  return toSend
}

const internalError = failedWith({ code: 'internal', message: texts.internal })

/** The answer of an agent whose turn was ended before the agent answered. */
function brokenOff(cause: Error): AgentAnswer {
  const now = performance.now()
  const events: AsyncIterable<AgentEvent[]> = {
    [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(cause) }),
  }
  return { events, askedAt: now, answeredAt: now }
}
