import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { AskGateway } from '../instances/ask-gateway.ts'

export interface SessionDeps {
  /** Talks to a running instance's gateway. */
  askGateway: AskGateway
}

export const sessionRoutes: FastifyPluginAsyncTypebox<SessionDeps> = async (_app, _deps) => {}
