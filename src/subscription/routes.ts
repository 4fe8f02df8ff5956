import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '../database/client.ts'

export interface SubscriptionDeps {
  db: Db
}

export const subscriptionRoutes: FastifyPluginAsyncTypebox<SubscriptionDeps> = async (_app, _deps) => {}
