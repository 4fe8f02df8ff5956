import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '../database/client.ts'
import type { SandboxAccess } from '../sandbox/driver.ts'

export interface FileDeps {
  db: Db
  sandboxes: SandboxAccess
}

export const fileRoutes: FastifyPluginAsyncTypebox<FileDeps> = async (_app, _deps) => {}
