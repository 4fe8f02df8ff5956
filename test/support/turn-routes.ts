import { randomUUID } from 'node:crypto'
import fastify, { type FastifyInstance } from 'fastify'
import { pino } from 'pino'
import { chatRoutes } from '#api/chat/routes.ts'
import { modelRoutes } from '#api/models/routes.ts'
import { useBackground } from '#api/responses/background/use-background.ts'
import { type ResponseDeps, responseRoutes } from '#api/responses/routes.ts'
import type { Caller } from '#http/caller.ts'
import { useClosing } from '#http/closing.ts'
import { useErrors } from '#http/errors.ts'
import { serializers, strictBodies } from '#http/validation.ts'
import { createVault } from '#platform/secrets.ts'
import { type TurnDeps, useTurns } from '#turns/turns.ts'

export type TurnRouteDeps = Omit<ResponseDeps, 'turns' | 'background'> & TurnDeps

/** An organization key that may do everything. */
export const callerOf = (organizationId: string): Caller => ({
  organizationId,
  keyId: 'key-1',
  keyHash: 'hash',
  permissions: null,
  instanceIds: null,
  sessions: null,
  token: null,
})

const findRunning: TurnDeps['findSummary'] = async (_organization, id) =>
  ({ id, desiredState: 'running', restartGeneration: null, readyAt: new Date() }) as never

/** The parts of a runner whose instances run. */
export const runnerDeps = { declareModel: async () => {}, findSummary: findRunning, recordKeyRefusal: async () => {} }

/** An API with only the routes that run turns, and those of models, whose caller is always this organization. */
export async function startTurnApi(
  organizationId: string,
  deps: Partial<TurnRouteDeps> & Pick<TurnRouteDeps, 'db' | 'findGateway'>,
) {
  const caller = callerOf(organizationId)
  const logLines: string[] = []
  const log = pino({ level: 'info' }, { write: (line: string) => void logLines.push(line) })
  const app: FastifyInstance = fastify({ loggerInstance: log, routerOptions: { maxParamLength: 1024 } }) as never
  app.setValidatorCompiler(strictBodies)
  app.setSerializerCompiler(serializers)
  useErrors(app, () => 'http://chowder.test')
  useClosing(app, () => false)
  app.decorateRequest('caller')
  app.addHook('onRequest', async (request) => {
    request.caller = caller
  })
  const all: TurnRouteDeps = {
    processId: randomUUID(),
    vault: createVault(Buffer.alloc(32, 7)),
    declareModel: async () => {},
    closing: { turnsMs: () => 0, onTurnsEnded: () => {} },
    findSummary: findRunning,
    findCaller: async () => caller,
    publicUrl: () => 'http://chowder.test',
    ...deps,
  }
  const turns = useTurns(app, all)
  const background = useBackground(app, { ...all, turns })
  await app.register(responseRoutes, { ...all, turns, background })
  await app.register(chatRoutes, { ...all, turns })
  await app.register(modelRoutes, all)
  return { app, url: await app.listen({ port: 0, host: '127.0.0.1' }), logLines }
}
