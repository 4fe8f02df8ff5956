import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { TurnBudgets } from '#budgets/check.ts'
import type { Db } from '#database/client.ts'
import type { FindCaller } from '#http/auth.ts'
import { InstanceParams } from '#http/instance-params.ts'
import type { FindGateway } from '#instances/find.ts'
import { chatCompletionAnswers } from './chat/completion-schema.ts'
import { createEphemeralSession, endEphemeralSession } from './chat/ephemeral-sessions.ts'
import { CreateChatCompletion } from './chat/request-schema.ts'
import { runChatCompletion } from './chat/run-chat-completion.ts'
import type { NoteEndUser } from './end-users.ts'
import { maxRequestBytes, turnBehaviour, turnFailures, turnRouteConfig } from './schemas.ts'
import { replyWithTurn, serverSentEvents } from './turns/turn-reply.ts'
import type { TurnRunner } from './turns/turn-runner.ts'

interface ChatDeps {
  db: Db
  turns: TurnRunner
  noteEndUser: NoteEndUser
  budgets: TurnBudgets
  findGateway: FindGateway
  findCaller: FindCaller
  /** The address that clients reach the API at. */
  publicUrl(): string
  graceMs: number
}

/** The route for clients that speak the Chat Completions format. */
export const chatRoutes: FastifyPluginAsyncTypebox<ChatDeps> = async (app, deps) => {
  const { db, turns, noteEndUser, budgets, findGateway, findCaller, publicUrl, graceMs } = deps

  /** Creates a session that ends with the answer. */
  async function createSession(request: FastifyRequest, { raw }: FastifyReply, instanceId: string): Promise<string> {
    const { organizationId } = request.caller
    const key = await createEphemeralSession(db, { organizationId, instanceId })
    await noteEndUser(request.caller, { organizationId, instanceId, sessionKey: key })
    const end = () => {
      endEphemeralSession(db, key).catch((err) =>
        request.log.warn({ err }, 'an ephemeral session could not be marked for deletion; it is deleted later'),
      )
    }
    if (raw.closed) end()
    else raw.on('close', end)
    return key
  }

  app.post(
    '/v1/instances/:instance_id/chat/completions',
    {
      // Its session is its own: no other call reaches it.
      config: { ...turnRouteConfig, session: 'none' },
      bodyLimit: maxRequestBytes,
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
    (request, reply) =>
      replyWithTurn(reply, { turns, findCaller, graceMs }, async (turn) => {
        const { body, log, caller } = request
        const instanceId = request.params.instance_id
        const { organizationId, keyId } = caller
        const gateway = await findGateway(organizationId, instanceId)
        await budgets.require({ organizationId, keyId, instanceId })
        const { answer, chunks, json } = await runChatCompletion(turns, turn, {
          gateway,
          instanceId,
          body,
          errorContext: { requestId: request.id, publicUrl: publicUrl() },
          createSession: () => createSession(request, reply, instanceId),
          begin: (sessionKey) => budgets.begin({ organizationId, keyId, instanceId, sessionKey }),
          log,
        })
        if (body.stream !== true) return { answer, json }
        return { answer, stream: serverSentEvents(chunks(), (chunk) => `data: ${chunk}\n\n`) }
      }),
  )
}
