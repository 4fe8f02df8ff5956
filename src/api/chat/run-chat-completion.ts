import type { FastifyBaseLogger } from 'fastify'
import { gatewayRequest } from '#api/responses/format/gateway-request.ts'
import { noKnownItems, readRequest, skipKnownItems } from '#api/responses/format/request.ts'
import { requireFormat } from '#api/responses/format/text-format.ts'
import type { Db } from '#database/client.ts'
import { texts } from '#errors/texts.ts'
import type { Caller } from '#http/caller.ts'
import { type ErrorContext, errorObject } from '#http/error-body.ts'
import { logFailure } from '#http/failure-log.ts'
import type { RunningGateway } from '#instances/find.ts'
import { createEphemeralSession, endEphemeralSession } from '#turns/ephemeral-sessions.ts'
import { resultOf, writeOutput } from '#turns/gateway-answer.ts'
import { askInFormat } from '#turns/output/ask.ts'
import type { AgentRequest } from '#turns/runner.ts'
import { type Turn, turnAbandoned } from '#turns/turn.ts'
import type { Turns } from '#turns/turns.ts'
import { ChatCompletionWriter } from './completion-writer.ts'
import { readChatRequest } from './request.ts'
import type { CreateChatCompletion } from './request-schema.ts'

interface ChatCompletionOptions {
  caller: Caller
  instanceId: string
  body: CreateChatCompletion
  errorContext: ErrorContext
  log: FastifyBaseLogger
}

/**
 * Runs one turn of an agent for a request in the Chat Completions format, in a session that ends with it. The request
 * holds the whole conversation, and none of it is stored. Yields the chunks of a stream, then `[DONE]`, or an object
 * with an `error` when the turn failed. Returns the completion as JSON; undefined after a stream of a turn that failed.
 * Throws AppError when the request is invalid, and when the turn fails before its stream has begun.
 */
export async function* runChatCompletion(
  db: Db,
  { admission, runner }: Pick<Turns, 'admission' | 'runner'>,
  turn: Turn,
  { caller, instanceId, body, errorContext, log }: ChatCompletionOptions,
): AsyncGenerator<string[], string | undefined> {
  const { organizationId } = caller
  const asker = { caller, user: body.user }
  // The session begins with the turn, so it has no end user yet.
  const gateway = await admission.admit(asker, { organizationId, instanceId, sessionKey: '' })
  const isStreamed = body.stream === true
  const { gatewayBody, format } = await readBody(body, gateway, turn.signal)
  const sessionKey = await createEphemeralSession(db, { organizationId, instanceId })
  const agentRequest: AgentRequest = {
    instanceId,
    gateway,
    sessionKey,
    model: body.model,
    isStreamed,
    log,
    body: { ...gatewayBody, ...(isStreamed && { stream: true }) },
  }
  try {
    await admission.begin(asker, { organizationId, instanceId, sessionKey })
    const events = await askInFormat(runner, turn, agentRequest, format)
    const writer = new ChatCompletionWriter(body.model, body.stream_options?.include_usage === true)
    const output = writeOutput(events, (one) => writer.write(one))
    if (isStreamed) yield writer.start()
    const end = isStreamed ? yield* output : await resultOf(output)
    const { error, failure } = runner.outcome(turn, agentRequest, end)
    if (end.kind === 'end') {
      if (isStreamed) yield [...writer.end(end), '[DONE]']
      return JSON.stringify(writer.completion(end))
    }
    if (!isStreamed) throw failure
    if (failure !== turnAbandoned) logFailure(log, failure, { instanceId }, 'a streamed turn failed')
    const { code, message } = error ?? { code: 'internal', message: texts.internal }
    yield [JSON.stringify({ error: errorObject({ code, detail: message }, errorContext) })]
    return undefined
  } finally {
    endEphemeralSession(db, sessionKey, log)
  }
}

/** The body for the gateway, and the format of the answer. Throws AppError invalid that names the field that cannot be honoured. */
async function readBody(body: CreateChatCompletion, gateway: RunningGateway, signal: AbortSignal) {
  const { request, toChatError } = readChatRequest(body)
  try {
    const checked = readRequest(request, gateway)
    skipKnownItems(checked.items, noKnownItems)
    const gatewayBody = gatewayRequest(checked)
    const { format } = checked.echo.text
    await requireFormat(format, gateway, signal)
    return { gatewayBody, format }
  } catch (error) {
    throw toChatError(error)
  }
}
