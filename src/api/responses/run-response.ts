import type { FastifyBaseLogger } from 'fastify'
import type { RunningGateway } from '#instances/find.ts'
import { type AgentEvent, follow, type TurnEnd } from './format/gateway-answer.ts'
import { noKnownItems, referencedIds, skipKnownItems } from './format/known-items.ts'
import { gatewayRequest, readRequest } from './format/request.ts'
import type { CreateResponse } from './format/request-schema.ts'
import { inProgress, newResponseId, nowInSeconds, type Outcome } from './format/response-object.ts'
import { type ResponseEvent, ResponseWriter } from './format/response-writer.ts'
import { storedInput } from './format/stored-input.ts'
import type { StartedResponse } from './store/response-rows.ts'
import type { ResponseStore } from './store/response-store.ts'
import type { SessionRef } from './store/session-history.ts'
import { clientLeft, type Turn, turnCancelled } from './turns/turn.ts'
import type { AgentAnswer, AgentRequest, TurnRunner } from './turns/turn-runner.ts'

/** One response that an agent is asked for, from the request to what is kept of it. */
export interface RunningResponse {
  answer: AgentAnswer
  /** Waits for the end, and answers the response as JSON. Throws AppError when the turn failed. */
  json(): Promise<string>
  /** The format's events as they come to be, the terminal one last; a turn that fails ends with `response.failed`. */
  events(): AsyncGenerator<ResponseEvent[]>
}

interface Asked extends SessionRef {
  gateway: RunningGateway
  body: CreateResponse
  isStreamed: boolean
  log: FastifyBaseLogger
}

/**
 * Asks an agent on behalf of a request, once what the request builds on was checked and it was written down that a turn
 * begins. However the turn ends, that is written down too, at the latest when `turn` is over. Throws AppError when the
 * request, or what it builds on, is at fault, when the gateway refuses or cannot be reached, and the turn's reason when
 * that was ended.
 */
export async function runResponse(
  turns: TurnRunner,
  store: ResponseStore,
  turn: Turn,
  asked: Asked,
): Promise<RunningResponse> {
  const { gateway, body, isStreamed, log, ...place } = asked
  const request = readRequest(body, gateway)
  const draft = { id: newResponseId(), createdAt: nowInSeconds(), echo: request.echo }
  const response = new ResponseWriter(draft)
  const begun = (answeredCallIds: string[]): StartedResponse => ({
    ...place,
    id: draft.id,
    isStored: request.echo.store,
    response: () => response.object(inProgress),
    input: () => storedInput(request.items),
    answeredCallIds,
  })
  const question = (offset: number): AgentRequest => ({
    instanceId: place.instanceId,
    gateway,
    sessionKey: place.sessionKey,
    model: body.model,
    isStreamed,
    log,
    body: {
      ...gatewayRequest(request, request.items.slice(offset), offset),
      ...(typeof body.input === 'string' && { input: body.input }),
      ...(isStreamed && { stream: true }),
    },
  })

  const named = { ...referencedIds(request.items), previousId: request.echo.previous_response_id }
  const isContinuing = named.previousId !== null || named.itemIds.length + named.callIds.length > 0
  let toAsk: AgentRequest
  if (isContinuing) {
    ;({ question: toAsk } = await store.beginContinuation(place, named, (known) => {
      const { offset, answered } = skipKnownItems(request.items, known)
      return { ...begun(answered), question: question(offset) }
    }))
  } else {
    skipKnownItems(request.items, noKnownItems)
    toAsk = question(0)
    store.begin(begun([]))
  }

  let isSettled = false
  /** Only the first end counts. Throws when the response cannot be told, and has written down that it failed. */
  const settle = (end: TurnEnd) => {
    const isFirst = !isSettled
    isSettled = true
    try {
      const outcome = turns.outcome(turn, toAsk, end)
      const { events, response: ended, json } = response.end(outcome)
      if (isFirst) store.finish(ended, json)
      return { events, json, failure: outcome.failure }
    } catch (error) {
      // Nothing else in it can be nested too deeply for JSON.
      const ended = { ...response.object(internal), tools: [] }
      if (isFirst) store.finish(ended, JSON.stringify(ended))
      throw error
    }
  }
  const broken = (cause: unknown): TurnEnd => ({ kind: 'broken', cause })
  turn.onFinish = () => {
    if (isSettled) return
    try {
      settle(broken(clientLeft))
    } catch (err) {
      log.warn({ err, instanceId: place.instanceId }, 'the response of a turn that was left could not be told')
    }
  }
  store.onCancelled(draft.id, () => turn.end(turnCancelled))

  const answer = await turns.ask(turn, toAsk).catch((cause) => {
    if (cause === turnCancelled) return nothing(cause)
    settle(broken(cause))
    throw cause
  })
  return {
    answer,
    async json() {
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) for (const one of step.value) response.write(one)
      const { json, failure } = settle(step.value)
      if (failure) throw failure
      return json
    },
    async *events() {
      yield response.start()
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) yield step.value.flatMap((one) => response.write(one))
      const { events, failure } = settle(step.value)
      if (failure) log.warn({ err: failure, instanceId: place.instanceId }, 'a streamed turn failed')
      yield events
    },
  }
}

const internal: Outcome = { status: 'failed', usage: null, error: { code: 'internal', message: 'Internal error.' } }

/** The answer of an agent whose turn was ended before it began to answer. */
function nothing(cause: Error): AgentAnswer {
  const now = performance.now()
  const events: AsyncIterable<AgentEvent[]> = {
    [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(cause) }),
  }
  return { events, askedAt: now, answeredAt: now }
}
