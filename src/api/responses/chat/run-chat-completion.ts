import type { FastifyBaseLogger } from 'fastify'
import { follow } from '#api/responses/format/gateway-answer.ts'
import { noKnownItems, skipKnownItems } from '#api/responses/format/known-items.ts'
import { gatewayRequest, readRequest } from '#api/responses/format/request.ts'
import type { Turn } from '#api/responses/turns/turn.ts'
import type { AgentAnswer, AgentRequest, TurnRunner } from '#api/responses/turns/turn-runner.ts'
import { openaiType } from '#http/errors.ts'
import type { RunningGateway } from '#instances/find.ts'
import { AppError, statusOf } from '#platform/errors.ts'
import type { CreateChatCompletion } from './completion-schema.ts'
import { ChatCompletionWriter } from './completion-writer.ts'
import { readChatRequest } from './request.ts'

/** One chat completion that an agent is asked for. */
export interface RunningChatCompletion {
  answer: AgentAnswer
  /** Waits for the end, and answers the completion as JSON. Throws AppError when the turn failed. */
  json(): Promise<string>
  /** The chunks, and `[DONE]`; a turn that fails ends with an `error` in their place. */
  chunks(): AsyncGenerator<string[]>
}

interface Asked {
  instanceId: string
  gateway: RunningGateway
  body: CreateChatCompletion
  /** Makes the session that the call runs in, once it is known to be good. */
  makeSession(): Promise<string>
  log: FastifyBaseLogger
}

/** As `respond`, for a call that brings its whole conversation along and leaves nothing behind. */
export async function runChatCompletion(turns: TurnRunner, turn: Turn, asked: Asked): Promise<RunningChatCompletion> {
  const { instanceId, gateway, body, log } = asked
  const { request: asResponse, toChatError } = readChatRequest(body)
  const isStreamed = body.stream === true
  let gatewayBody: object
  try {
    const request = readRequest(asResponse, gateway)
    skipKnownItems(request.items, noKnownItems)
    gatewayBody = gatewayRequest(request, request.items, 0)
  } catch (error) {
    throw toChatError(error)
  }
  const question: AgentRequest = {
    instanceId,
    gateway,
    sessionKey: await asked.makeSession(),
    model: body.model,
    isStreamed,
    log,
    body: { ...gatewayBody, ...(isStreamed && { stream: true }) },
  }
  const answer = await turns.ask(turn, question)
  const out = new ChatCompletionWriter(body.model, body.stream_options?.include_usage === true)

  return {
    answer,
    async json() {
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) for (const one of step.value) out.write(one)
      const { failure } = turns.outcome(turn, question, step.value)
      if (step.value.kind !== 'end') throw failure
      return JSON.stringify(out.completion(step.value))
    },
    async *chunks() {
      yield [out.start()]
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) yield step.value.flatMap((one) => out.write(one))
      const { error, failure } = turns.outcome(turn, question, step.value)
      if (step.value.kind === 'end') return yield [...out.end(step.value), '[DONE]']
      log.warn({ err: failure, instanceId }, 'a streamed turn failed')
      const status = failure instanceof AppError ? statusOf[failure.kind] : 500
      yield [JSON.stringify({ error: { ...error, type: openaiType(status), param: null } })]
    },
  }
}
