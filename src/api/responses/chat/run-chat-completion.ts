import type { FastifyBaseLogger } from 'fastify'
import { resultOf, writeOutput } from '#api/responses/format/agent-events.ts'
import { gatewayRequest } from '#api/responses/format/gateway-request.ts'
import { noKnownItems, skipKnownItems } from '#api/responses/format/known-items.ts'
import { readRequest } from '#api/responses/format/request.ts'
import { type Turn, turnAbandoned } from '#api/responses/turns/turn.ts'
import type { AgentAnswer, AgentRequest, TurnRunner } from '#api/responses/turns/turn-runner.ts'
import { type ErrorContext, errorObject } from '#http/error-body.ts'
import { logFailure } from '#http/failure-log.ts'
import type { RunningGateway } from '#instances/find.ts'
import { texts } from '#platform/texts.ts'
import { ChatCompletionWriter } from './completion-writer.ts'
import { readChatRequest } from './request.ts'
import type { CreateChatCompletion } from './request-schema.ts'

/** A chat completion while its turn runs. Read it once, with `json` or with `chunks`. */
export interface RunningChatCompletion {
  answer: AgentAnswer
  /** Waits for the end of the turn and returns the completion as JSON. Throws AppError when the turn failed. */
  json(): Promise<string>
  /** The chunks, then `[DONE]`, or an object with an `error` when the turn failed. */
  chunks(): AsyncGenerator<string[]>
}

interface ChatCompletionOptions {
  instanceId: string
  gateway: RunningGateway
  body: CreateChatCompletion
  errorContext: ErrorContext
  /** Creates the session of the turn, and returns its key. Called once the request is known to be valid. */
  createSession(): Promise<string>
  /** Called with this key when the turn begins. */
  begin(sessionKey: string): Promise<void>
  log: FastifyBaseLogger
}

/**
 * Runs one turn of an agent for a request to the Chat Completions format. The request holds the whole conversation, and
 * nothing of it is stored. Throws as `runResponse` does.
 */
export async function runChatCompletion(
  turns: TurnRunner,
  turn: Turn,
  options: ChatCompletionOptions,
): Promise<RunningChatCompletion> {
  const { instanceId, gateway, body, errorContext, log } = options
  const isStreamed = body.stream === true
  const gatewayBody = readBody(body, gateway)
  const sessionKey = await options.createSession()
  const agentRequest: AgentRequest = {
    instanceId,
    gateway,
    sessionKey,
    begin: () => options.begin(sessionKey),
    model: body.model,
    isStreamed,
    log,
    body: { ...gatewayBody, ...(isStreamed && { stream: true }) },
  }
  const answer = await turns.ask(turn, agentRequest)
  const writer = new ChatCompletionWriter(body.model, body.stream_options?.include_usage === true)
  const writtenOutput = () => writeOutput(answer.events, (output) => writer.write(output))
  return {
    answer,
    async json() {
      const end = await resultOf(writtenOutput())
      const { failure } = turns.outcome(turn, agentRequest, end)
      if (end.kind !== 'end') throw failure
      return JSON.stringify(writer.completion(end))
    },
    async *chunks() {
      yield writer.start()
      const end = yield* writtenOutput()
      const { error, failure } = turns.outcome(turn, agentRequest, end)
      if (end.kind === 'end') return yield [...writer.end(end), '[DONE]']
      if (failure !== turnAbandoned) logFailure(log, failure, { instanceId }, 'a streamed turn failed')
      const { code, message } = error ?? { code: 'internal', message: texts.internal }
      yield [JSON.stringify({ error: errorObject({ code, detail: message }, errorContext) })]
    },
  }
}

/** The body for the gateway. Throws AppError invalid that names the field that cannot be honoured. */
function readBody(body: CreateChatCompletion, gateway: RunningGateway): object {
  const { request, toChatError } = readChatRequest(body)
  try {
    const checked = readRequest(request, gateway)
    skipKnownItems(checked.items, noKnownItems)
    return gatewayRequest(checked)
  } catch (error) {
    throw toChatError(error)
  }
}
