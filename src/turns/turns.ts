import type { FastifyInstance } from 'fastify'
import type { Db } from '#database/client.ts'
import type { FindCaller } from '#http/caller.ts'
import type { FindGateway, FindSummary } from '#instances/find.ts'
import type { DeclareModel } from '#instances/gateway/declare-model.ts'
import { recordKeyRefusal } from '#instances/provider-key-refusal.ts'
import { type Admission, createAdmission } from './admit.ts'
import { createTurnLines, type TurnLines } from './line.ts'
import { createTurnRunner, type TurnRunner } from './runner.ts'
import { defaultTurnTimeouts, type TurnTimeouts } from './turn.ts'

export interface TurnDeps {
  db: Db
  /** The id of this process in the table `processes`. */
  processId: string
  /**
   * Finds the gateway of a running instance. Throws AppError `not_found`, or `conflict` when the instance is not
   * running.
   */
  findGateway: FindGateway
  findSummary: FindSummary
  declareModel: DeclareModel
  findCaller: FindCaller
  turnTimeouts?: TurnTimeouts
  closing: TurnDrain
}

/** The end of turns when the server closes. */
interface TurnDrain {
  /** Time for running turns to end by themselves, in ms. Called once, when the server closes. */
  turnsMs(): number
  /** Called once no turn runs. */
  onTurnsEnded(): void
}

/** The parts that run turns, for all formats. */
export interface Turns {
  admission: Admission
  lines: TurnLines
  runner: TurnRunner
  findCaller: FindCaller
  /** The time for a client to read the rest of an answer after its turn was ended, in ms. */
  graceMs: number
}

/** Creates the parts that run an API's turns, and ends the turns when it closes. */
export function useTurns(app: FastifyInstance, deps: TurnDeps): Turns {
  const { db, processId, findGateway, findCaller, closing, turnTimeouts = defaultTurnTimeouts } = deps
  const runner = createTurnRunner(turnTimeouts, {
    declareModel: deps.declareModel,
    findSummary: deps.findSummary,
    recordKeyRefusal: ({ organizationId, provider }) => recordKeyRefusal(db, organizationId, provider),
  })
  const lines = createTurnLines(db, processId)
  // Not awaited: the server stops listening after this hook, and then waits for its open requests.
  app.addHook('preClose', async () => void runner.drain(closing.turnsMs()).then(closing.onTurnsEnded))
  app.addHook('onClose', async () => void (await Promise.all([runner.close(), lines.close()])))
  const admission = createAdmission(db, findGateway, app.log)
  return { admission, lines, runner, findCaller, graceMs: turnTimeouts.graceMs }
}
