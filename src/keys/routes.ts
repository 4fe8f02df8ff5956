import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '../database/client.ts'
import type { Vault } from '../platform/secrets.ts'

export interface KeyDeps {
  db: Db
  vault: Vault
}

export const keyRoutes: FastifyPluginAsyncTypebox<KeyDeps> = async (_app, _deps) => {}
