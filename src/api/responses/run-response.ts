import type { FastifyBaseLogger } from 'fastify'
import pTimeout from 'p-timeout'
import type { Db } from '#database/client.ts'
import type { Caller } from '#http/caller.ts'
import { logFailure } from '#http/failure-log.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import type { Vault } from '#platform/secrets.ts'
import type { TurnSession } from '#turns/admit.ts'
import { resultOf, type TurnEnd, writeOutput } from '#turns/gateway-answer.ts'
import { type PlaceInLine, sessionBusy } from '#turns/line.ts'
import { askInFormat } from '#turns/output/ask.ts'
import type { AgentRequest } from '#turns/runner.ts'
import { signsOfLife } from '#turns/signs-of-life.ts'
import { followTools } from '#turns/tool-events.ts'
import { type Turn, turnAbandoned, turnCancelled } from '#turns/turn.ts'
import type { Turns } from '#turns/turns.ts'
import { summaryOpener } from './compaction/sealed-summary.ts'
import { gatewayRequest } from './format/gateway-request.ts'
import { invalidField } from './format/invalid-field.ts'
import { readRequest } from './format/request.ts'
import { type CreateResponse, includesTools } from './format/request-schema.ts'
import {
  inProgress,
  newResponseId,
  nowInSeconds,
  type ResponseEvent,
  ResponseWriter,
} from './format/response-writer.ts'
import { storedInput } from './format/stored-input.ts'
import { requireFormat } from './format/text-format.ts'
import { beginResponse } from './store/begin-response.ts'
import type { ResponseStore } from './store/response-store.ts'

/** A turn whose answer has just been sent may take this long to leave the line of its session, in ms. */
const leaveMs = 500

export interface ResponseParts {
  db: Db
  turns: Pick<Turns, 'admission' | 'runner' | 'lines'>
  store: ResponseStore
  /** Opens the compactions of an input. */
  vault: Vault
  watches: Watches
}

interface ResponseOptions {
  caller: Caller
  session: TurnSession
  /** The only response without contents that can be continued; without it, each can. */
  unstoredId?: string | null
  body: CreateResponse
  isStreamed: boolean
  log: FastifyBaseLogger
}

/**
 * Runs one turn of an agent for a request in the Responses format. Yields the events of a stream, the terminal one
 * last, or returns the response as JSON. While the turn waits for earlier ones of its session, or for an answer in a
 * format, a stream gets batches without events to keep it alive. The response is stored when it is accepted and when its
 * turn ends, in every case.
 *
 * Throws AppError when the request or a referenced item is invalid, when too many turns wait, and when the turn fails.
 * A stream that has begun throws nothing: its last event is `response.failed`.
 */
export async function* runResponse(
  { db, turns: { admission, runner, lines }, store, vault, watches }: ResponseParts,
  turn: Turn,
  options: ResponseOptions,
): AsyncGenerator<ResponseEvent[], string> {
  const { caller, session, body, isStreamed, log } = options
  if (body.background)
    throw invalidField('background', 'must be false on a WebSocket. Send a POST.', 'unsupported_value')
  const asker = { caller, user: body.user }
  const gateway = await admission.admit(asker, session)
  const request = readRequest(body, gateway, summaryOpener(vault, session))
  await requireFormat(request.echo.text.format, gateway, turn.signal)
  const draft = { id: newResponseId(), createdAt: nowInSeconds(), echo: request.echo }
  const writer = new ResponseWriter(draft)
  const { echo, items } = request
  const visible = { ...caller, unstoredId: options.unstoredId }
  const agentRequestFrom = (offset: number): AgentRequest => ({
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
  const { agentRequest } = await beginResponse(
    store,
    { session, caller: visible, request },
    ({ offset, answeredCallIds }) => ({
      ...session,
      id: draft.id,
      turn,
      isStored: echo.store,
      response: () => writer.object(inProgress),
      input: () => storedInput(items),
      answeredCallIds,
      agentRequest: agentRequestFrom(offset),
    }),
  )

  let end: TurnEnd = { kind: 'broken', cause: turnAbandoned } // stays true if the reader leaves
  let refused: { cause: unknown } | null = null
  let place: PlaceInLine | null = null
  let tools: Awaited<ReturnType<typeof followTools>> | null = null
  /** The events that the stream begins with. */
  let opening: 'start' | 'begin' | null = 'start'
  let outcome: ReturnType<typeof runner.outcome>
  let written: ReturnType<typeof writer.end>
  try {
    if (body.on_busy === 'interrupt') await store.cancelOthers(session, draft.id)
    place = await lines.enter(turn, session)
    const rejects = body.on_busy === 'reject'
    if (place.mustWait && rejects) {
      const hasBegun = place.begun.then(() => true)
      if (!(await pTimeout(hasBegun, { milliseconds: leaveMs, message: false }))) throw sessionBusy()
    } else if (place.mustWait) {
      turn.waits()
      runner.watch(turn, agentRequest)
      if (isStreamed) {
        opening = 'begin'
        yield writer.queue()
        yield* signsOfLife(place.begun)
      }
      await place.begun
    }
    await admission.begin(asker, session)
    const wantsTools = isStreamed && includesTools(body)
    if (wantsTools || gateway.asks) {
      const functions = new Set(echo.tools.map(({ name }) => name))
      const following = { ...session, db, watches, log, wantsTools, functions }
      tools = await followTools(following, turn, gateway)
    }
    const asked = tools ? { ...agentRequest, onRun: tools.onRun } : agentRequest
    const events = await askInFormat(runner, turn, asked, echo.text.format)
    const output = writeOutput(tools?.addTo(events) ?? events, (one) => writer.write(one))
    if (isStreamed) {
      const first = writer[opening]()
      opening = null
      yield first
      end = yield* output
    } else {
      end = await resultOf(output)
    }
  } catch (cause) {
    refused = { cause }
    end = { kind: 'broken', cause }
    // A stream that waited has begun for its client. A cancelled one has an answer: the end of its response.
    if (isStreamed && (opening === 'begin' || cause === turnCancelled)) {
      const first = writer[opening ?? 'start']()
      opening = null
      yield first
    }
  } finally {
    place?.leave()
    tools?.release()
    outcome = runner.outcome(turn, agentRequest, end)
    written = writer.end(outcome)
    store.finish(written.response, written.json)
  }

  const { failure } = outcome
  if (failure && opening !== null) throw refused ? refused.cause : failure
  if (failure && failure !== turnAbandoned) {
    logFailure(log, failure, { instanceId: session.instanceId }, 'a streamed turn failed')
  }
  if (isStreamed) yield written.events
  return written.json
}
