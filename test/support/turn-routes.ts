import type { FastifyInstance } from 'fastify'
import { chatRoutes } from '#api/chat/routes.ts'
import { modelRoutes } from '#api/models/routes.ts'
import { type ResponseDeps, responseRoutes } from '#api/responses/routes.ts'
import { type TurnDeps, useTurns } from '#turns/turns.ts'

export type TurnRouteDeps = Omit<ResponseDeps, 'turns'> & TurnDeps

/** Registers the routes that run turns, and those of models, as `app.ts` does. */
export async function registerTurnRoutes(app: FastifyInstance, deps: TurnRouteDeps): Promise<void> {
  const turns = useTurns(app, deps)
  await app.register(responseRoutes, { ...deps, turns })
  await app.register(chatRoutes, { ...deps, turns })
  await app.register(modelRoutes, deps)
}
