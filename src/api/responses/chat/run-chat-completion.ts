import type { FastifyBaseLogger } from 'fastify'
import { follow } from '#api/responses/format/gateway-answer.ts'
import { knowsNothing, splitKnown } from '#api/responses/format/known-items.ts'
import { gatewayRequest, readRequest } from '#api/responses/format/request.ts'
import type { Turn } from '#api/responses/turns/turn.ts'
import type { AgentAnswer, Question, Turns } from '#api/responses/turns/turn-runner.ts'
import { openaiType } from '#http/errors.ts'
import type { RunningGateway } from '#instances/find.ts'
import { AppError, statusOf } from '#platform/errors.ts'
import type { CreateChatCompletion } from './completion-schema.ts'
import { ChatOut } from './completion-writer.ts'
import { readChat } from './request.ts'

/** One chat completion that an agent is asked for. */
export interface Chatting {
  answer: AgentAnswer
  /** Waits for the end, and answers the completion as JSON. Throws AppError when the turn failed. */
  whole(): Promise<string>
  /** The chunks, and `[DONE]`; a turn that fails ends with an `error` in their place. */
  stream(): AsyncGenerator<string[]>
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
export async function chat(turns: Turns, turn: Turn, asked: Asked): Promise<Chatting> {
  const { instanceId, gateway, body, log } = asked
  const { request: asResponse, inWords } = readChat(body)
  const isStreamed = body.stream === true
  let gatewayBody: object
  try {
    const request = readRequest(asResponse, gateway)
    splitKnown(request.items, knowsNothing)
    gatewayBody = gatewayRequest(request, request.items, 0)
  } catch (error) {
    throw inWords(error)
  }
  const question: Question = {
    instanceId,
    gateway,
    sessionKey: await asked.makeSession(),
    model: body.model,
    isStreamed,
    log,
    body: { ...gatewayBody, ...(isStreamed && { stream: true }) },
  }
  const answer = await turns.ask(turn, question)
  const out = new ChatOut(body.model, body.stream_options?.include_usage === true)

  return {
    answer,
    async whole() {
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) for (const one of step.value) out.say(one)
      const { failure } = turns.outcome(turn, question, step.value)
      if (step.value.kind !== 'end') throw failure
      return JSON.stringify(out.whole(step.value))
    },
    async *stream() {
      yield [out.begin()]
      const said = follow(answer.events)
      let step = await said.next()
      for (; !step.done; step = await said.next()) yield step.value.flatMap((one) => out.say(one))
      const { error, failure } = turns.outcome(turn, question, step.value)
      if (step.value.kind === 'end') return yield [...out.end(step.value), '[DONE]']
      log.warn({ err: failure, instanceId }, 'a streamed turn failed')
      const status = failure instanceof AppError ? statusOf[failure.kind] : 500
      yield [JSON.stringify({ error: { ...error, type: openaiType(status), param: null } })]
    },
  }
}
