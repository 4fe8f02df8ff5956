import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { AskGateway } from '../instances/ask-gateway.ts'
import type { ChangeDeps } from '../instances/change.ts'

export interface ChannelDeps extends ChangeDeps {
  askGateway: AskGateway
}

export const channelRoutes: FastifyPluginAsyncTypebox<ChannelDeps> = async (_app, _deps) => {}
