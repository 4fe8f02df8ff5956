import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { beginTurn, replyWithTurn, serverSentEvents } from '#turns/reply.ts'
import { maxTurnBytes, turnBehaviour, turnFailures, turnRouteConfig } from '#turns/route.ts'
import type { Turns } from '#turns/turns.ts'
import { chatCompletionAnswers } from './completion-schema.ts'
import { CreateChatCompletion } from './request-schema.ts'
import { runChatCompletion } from './run-chat-completion.ts'

interface ChatDeps {
  db: Db
  turns: Turns
  /** The base URL for clients. */
  publicUrl(): string
}

/** The route for clients that speak the Chat Completions format. */
export const chatRoutes: FastifyPluginAsyncTypebox<ChatDeps> = async (app, { db, turns, publicUrl }) => {
  app.post(
    '/v1/instances/:instance_id/chat/completions',
    {
      // Each call has its own session, which no other call can reach.
      config: { ...turnRouteConfig, session: 'none' },
      bodyLimit: maxTurnBytes,
      schema: {
        tags: ['responses'],
        body: CreateChatCompletion,
        response: { ...chatCompletionAnswers, ...turnFailures },
        operationId: 'createChatCompletion',
        summary: 'Send a message to an agent in the Chat Completions format',
        description:
          'For clients that have no other format, and send the whole conversation each time. The call runs in ' +
          `a session of its own, which is deleted afterwards. ${turnBehaviour} ` +
          '`Idempotency-Key` has no effect here.',
        params: InstanceParams,
      },
    },
    (request, reply) => {
      const turn = beginTurn(reply, turns)
      const run = runChatCompletion(db, turns, turn, {
        caller: request.caller,
        instanceId: request.params.instance_id,
        body: request.body,
        errorContext: { requestId: request.id, publicUrl: publicUrl() },
        log: request.log,
      })
      return replyWithTurn(
        reply,
        turn,
        serverSentEvents(run, (chunk) => `data: ${chunk}\n\n`),
      )
    },
  )
}
