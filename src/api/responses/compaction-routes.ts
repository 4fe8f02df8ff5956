import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { claimKey } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { keepAnswer, replyAgain } from '#turns/keep-answer.ts'
import { beginTurn, replyWithTurn, serverSentEvents } from '#turns/reply.ts'
import { maxTurnBytes, turnFailures, turnRouteConfig } from '#turns/route.ts'
import type { Turns } from '#turns/turns.ts'
import { type CompactionParts, runCompaction } from './compaction/run-compaction.ts'
import { CompactConversation, Compaction } from './compaction/schemas.ts'
import { BySession } from './schemas.ts'
import { taggedBodies } from './validation.ts'

const description =
  'Compacts the items of `input`, after the stored conversation of a response if you name one. The agent writes a ' +
  'summary in a session of its own, which is deleted afterwards. Send the item of `output` as the first item of ' +
  '`input` to begin another session with it. Nothing is stored, and the conversation stays as it is. Answers when the ' +
  'agent has finished, after up to 15 minutes. 402 while a hard budget is used up.'

interface CompactionDeps extends CompactionParts {
  turns: Turns
  /** The id of this process in the table `processes`. */
  processId: string
}

/** The routes that compact a conversation. */
export const compactionRoutes: FastifyPluginAsyncTypebox<CompactionDeps> = async (app, parts) => {
  const addRoute = (path: string, params: typeof InstanceParams | typeof BySession, of: [string, string]) => {
    const [operationId, summary] = of
    const response = { 200: Compaction, ...turnFailures }
    app.post(
      path,
      {
        config: { ...turnRouteConfig, session: 'handler', idempotency: 'transaction' },
        bodyLimit: maxTurnBytes,
        validatorCompiler: taggedBodies,
        schema: { tags: ['responses'], operationId, summary, description, params, body: CompactConversation, response },
      },
      async (request, reply) => {
        const { caller, body, log } = request
        const { instance_id: instanceId, session_id: id } = request.params as {
          instance_id: string
          session_id?: string
        }
        const key = id === undefined ? null : sessionKey(id)
        const claim = await claimKey(parts, request)
        if (claim && !('store' in claim)) return replyAgain(reply, claim.body, null) as never
        const turn = beginTurn(reply, parts.turns)
        const run = runCompaction(parts, turn, { caller, instanceId, sessionKey: key, body, log })
        return replyWithTurn(reply, turn, serverSentEvents(claim ? keepAnswer(run, claim) : run, String))
      },
    )
  }
  const name = 'Compact a conversation'
  addRoute('/v1/instances/:instance_id/responses/compact', InstanceParams, ['compactConversation', name])
  addRoute('/v1/instances/:instance_id/session/:session_id/responses/compact', BySession, [
    'compactSessionConversation',
    `${name} of a session`,
  ])
}
