import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { AskGateway } from '../instances/ask-gateway.ts'
import type { ChangeDeps } from '../instances/change.ts'

export interface SkillDeps extends ChangeDeps {
  askGateway: AskGateway
  /** The registry of skills; undefined is OpenClaw's default. */
  clawhubUrl: string | undefined
}

export const skillRoutes: FastifyPluginAsyncTypebox<SkillDeps> = async (_app, _deps) => {}
