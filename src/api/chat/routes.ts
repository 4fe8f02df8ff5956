import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { claimKey } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import type { Vault } from '#platform/secrets.ts'
import { keepAnswer, replyAgain } from '#turns/keep-answer.ts'
import { beginTurn, replyWithTurn, serverSentEvents } from '#turns/reply.ts'
import { maxTurnBytes, turnBehaviour, turnFailures, turnRouteConfig } from '#turns/route.ts'
import type { Turns } from '#turns/turns.ts'
import { type ChatCompletion, chatCompletionAnswers } from './completion-schema.ts'
import { chunksOf } from './completion-writer.ts'
import { CreateChatCompletion } from './request-schema.ts'
import { runChatCompletion } from './run-chat-completion.ts'

interface ChatDeps {
  db: Db
  vault: Vault
  /** The id of this process in the table `processes`. */
  processId: string
  turns: Turns
  /** The base URL for clients. */
  publicUrl(): string
}

const dataEvent = (chunk: string) => `data: ${chunk}\n\n`

/** The route for clients that speak the Chat Completions format. */
export const chatRoutes: FastifyPluginAsyncTypebox<ChatDeps> = async (app, deps) => {
  const { db, turns, publicUrl } = deps
  app.post(
    '/v1/instances/:instance_id/chat/completions',
    {
      // Each call has its own session, which no other call can reach.
      config: { ...turnRouteConfig, session: 'none', idempotency: 'transaction' },
      bodyLimit: maxTurnBytes,
      schema: {
        tags: ['responses'],
        body: CreateChatCompletion,
        response: { ...chatCompletionAnswers, ...turnFailures },
        operationId: 'createChatCompletion',
        summary: 'Send a message to an agent in the Chat Completions format',
        description:
          'For clients that have no other format, and send the whole conversation each time. The call runs in ' +
          `a session of its own, which is deleted afterwards. ${turnBehaviour}`,
        params: InstanceParams,
      },
    },
    async (request, reply) => {
      const claim = await claimKey(deps, request)
      if (claim && !('store' in claim)) {
        const { stream, stream_options: options } = request.body
        const chunks = () => [...chunksOf(claim.body as ChatCompletion, options?.include_usage === true), '[DONE]']
        return replyAgain(reply, claim.body, stream ? chunks().map(dataEvent).join('') : null) as never
      }
      const turn = beginTurn(reply, turns)
      const answered = runChatCompletion(db, turns, turn, {
        caller: request.caller,
        instanceId: request.params.instance_id,
        body: request.body,
        errorContext: { requestId: request.id, publicUrl: publicUrl() },
        log: request.log,
      })
      const run = claim ? keepAnswer(answered, claim) : answered
      return replyWithTurn(reply, turn, serverSentEvents(run, dataEvent))
    },
  )
}
