import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import { inProgress, type ResponseEvent, ResponseWriter, toResponseId } from '#api/responses/format/response-writer.ts'
import type { Db } from '#database/client.ts'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError } from '#errors/app-error.ts'
import { logFailure } from '#http/failure-log.ts'
import type { FindGateway, FindSummary } from '#instances/find.ts'
import type { DeclareModel } from '#instances/gateway/declare-model.ts'
import type { Watches } from '#openclaw/gateway/watches.ts'
import { type AgentRun, endRun, followRun } from '#turns/agent-run.ts'
import { TurnApprovals } from '#turns/approvals.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { type AgentEvent, type TurnEnd, writeOutput } from '#turns/gateway-answer.ts'
import type { PlaceInLine } from '#turns/line.ts'
import { checkedAnswer } from '#turns/output/ask.ts'
import { checkOutput } from '#turns/output/validation.ts'
import { ToolQueue, withTools } from '#turns/tool-events.ts'
import { defaultTurnTimeouts, Turn, turnCancelled } from '#turns/turn.ts'
import type { Turns } from '#turns/turns.ts'
import { runIdOf, toCorrection } from './background-request.ts'
import type { BackgroundRows, ClaimedTurn, EventBatch } from './background-rows.ts'

/** The longest that a background turn may take from its acceptance on. */
const maxBackgroundMinutes = 60
/** How often, in ms, turns without a living process are claimed, and cancelled ones are ended. */
const tickEveryMs = 1000
/** How many background turns one process follows. Further ones wait in the database. */
const maxFollowed = 500
/** The shortest time between two batches of events of one turn, in ms. It bounds the rows that an agent can cause. */
const batchEveryMs = 50
const retryEveryMs = 1000
const maxAttempts = 300
const closeTimeoutMs = 5000

/** The reason of a turn that another process goes on with. */
const handedOver = new Error('the turn is of another process')

export interface BackgroundDeps {
  db: Db
  rows: BackgroundRows
  turns: Pick<Turns, 'admission' | 'lines' | 'runner'>
  findGateway: FindGateway
  findSummary: FindSummary
  declareModel: DeclareModel
  watches: Watches
  log: FastifyBaseLogger
}

export interface BackgroundTurns {
  /** Claims waiting turns now, such as one that was just stored. */
  wake(): void
  /** Lets other processes take over the turns. They go on at their gateways meanwhile. */
  close(): Promise<void>
}

/**
 * Runs the background turns that no living process runs. They are runs of their gateways, so a process that ends costs
 * nothing: the next one reads their sessions and goes on.
 */
export function createBackgroundTurns(deps: BackgroundDeps): BackgroundTurns {
  const { rows, log } = deps
  const followed = new Map<string, { turn: Turn; done: Promise<void> }>()
  let isClosed = false
  let isAwake = false
  let ticking: Promise<void> | null = null

  function begin(claimed: ClaimedTurn): void {
    const turn = new Turn(defaultTurnTimeouts)
    const limit = maxBackgroundMinutes * 60_000
    const tooLong = setTimeout(
      () => turn.end(new AppError('turn_too_long', errorTexts.tooLong(maxBackgroundMinutes), { doNotRetry: true })),
      Math.max(limit - claimed.ageMs, 0),
    )
    const done = follow(deps, claimed, turn)
      .then((end) => (end === 'left' ? rows.release(claimed.id) : undefined))
      .catch((err: unknown) => log.error({ err, instanceId: claimed.instanceId }, 'a background turn was left'))
      .finally(() => {
        clearTimeout(tooLong)
        turn.finish()
        followed.delete(claimed.id)
      })
    followed.set(claimed.id, { turn, done })
  }

  async function tick(): Promise<void> {
    if (followed.size > 0) {
      for (const { id, isOurs } of await rows.findEnded([...followed.keys()])) {
        followed.get(id)?.turn.end(isOurs ? turnCancelled : handedOver)
      }
    }
    const room = maxFollowed - followed.size
    if (room <= 0 || isClosed) return
    for (const claimed of await rows.claim(room)) begin(claimed)
  }

  function wake(): void {
    isAwake = true
    ticking ??= (async () => {
      for (; isAwake && !isClosed; ) {
        isAwake = false
        await tick().catch((err: unknown) => {
          if (!isDatabaseDown(err)) log.error({ err }, 'background turns could not be claimed')
        })
      }
      ticking = null
    })()
  }
  const timer = setInterval(wake, tickEveryMs).unref()

  return {
    wake,
    async close() {
      isClosed = true
      clearInterval(timer)
      await ticking
      const open = [...followed.values()]
      for (const { turn } of open) turn.end(handedOver)
      await Promise.race([Promise.all(open.map(({ done }) => done)), sleep(closeTimeoutMs, undefined, { ref: false })])
    },
  }
}

/** Runs one claimed turn to its end, and stores that. Returns `left` for one that another process goes on with. */
async function follow(deps: BackgroundDeps, claimed: ClaimedTurn, turn: Turn): Promise<'ended' | 'left'> {
  const { rows, turns, log } = deps
  const { admission, lines, runner } = turns
  const { id: uuid, organizationId, instanceId, sessionKey } = claimed
  const session = { organizationId, instanceId, sessionKey }
  let request = rows.unsealRequest(claimed)
  const { createdAt, echo, model, endUser, isResumed, includesTools = false } = request
  const { format } = echo.text
  const acts = new ToolQueue()
  const approvals = new TurnApprovals({ ...deps, organizationId, instanceId, onChange: (event) => acts.add(event) })
  const id = toResponseId(uuid)
  const writer = new ResponseWriter({ id, createdAt, echo })
  let isSent = claimed.sentMsAgo !== null || request.correction !== undefined

  async function write(events: ResponseEvent[]): Promise<void> {
    const batch = toBatch(events)
    if (!(await whileDatabaseDown(turn, () => rows.append(uuid, batch)))) turn.end(handedOver)
    turn.signal.throwIfAborted()
    if (!events.some(({ type }) => type.startsWith('chowder:approval.'))) return
    await whileDatabaseDown(turn, () => rows.recordObject(uuid, writer.object(inProgress)))
  }
  /** Ends a turn whose row could not be changed. */
  async function endLost(): Promise<void> {
    const [state] = await rows.findEnded([uuid])
    turn.end(state?.isOurs ? turnCancelled : handedOver)
    turn.signal.throwIfAborted()
  }
  const runFrom = (sentMsAgo: number | null): AgentRun => ({
    id: runIdOf(id, request),
    isResumed,
    ...(includesTools && { onTool: (event) => acts.add(event) }),
    approvals,
    pendingApprovals: () => writer.pendingApprovals,
    organizationId,
    instanceId,
    sentMsAgo,
    saidBefore: null,
    request: { ...request.run, sessionKey, timeout: maxBackgroundMinutes * 60 },
    async prepare(gateway) {
      await deps.declareModel(gateway, instanceId, model)
      await admission.begin({ caller: { token: null }, user: endUser }, session)
    },
    async recordSending() {
      if (!(await rows.recordSending(uuid))) return endLost()
      isSent = true
    },
    findFailure: (gateway) =>
      runner.findFailure(turn, { instanceId, gateway, sessionKey, model, body: {}, isStreamed: false, log }),
  })
  let run = runFrom(claimed.sentMsAgo)

  /** The answer of the run, or of the one that corrects it. */
  function answer(): AsyncIterable<AgentEvent[]> {
    const batches = followRun(deps, turn, run)
    if (format.type === 'text') return batches
    return checkedAnswer(batches, request.correction ?? null, {
      check: (text) => checkOutput(organizationId, format, text, turn.signal),
      async askAgain(correction) {
        const next = toCorrection(request, correction)
        const response = writer.object(inProgress)
        if (!(await whileDatabaseDown(turn, () => rows.recordCorrection(uuid, next, response)))) await endLost()
        request = next
        run = runFrom(null)
        return followRun(deps, turn, run)
      },
    })
  }

  /** Enters the line of its session. */
  async function enterLine(): Promise<PlaceInLine> {
    for (;;) {
      try {
        return await lines.enter(turn, session)
      } catch (error) {
        if (!isUnavailable(error)) throw error
        await sleep(retryEveryMs)
      }
    }
  }
  let place: PlaceInLine | null = null
  async function waitInLine(): Promise<void> {
    for (;;) {
      try {
        return await place?.begun
      } catch (error) {
        if (!isUnavailable(error)) throw error
        place?.leave()
        await sleep(retryEveryMs)
        place = await enterLine()
      }
    }
  }

  let end: TurnEnd | undefined
  try {
    // Before anything else is awaited: turns of one session enter in the order of their claims.
    place = await enterLine()
    const earlier = await whileDatabaseDown(turn, () => rows.read({ id: uuid, after: -1 }))
    writer.continueAfter(earlier.flatMap(({ events }) => events))
    const said = writer.openText
    const isChecked = format.type !== 'text'
    if (!isChecked) run.saidBefore = said
    if (earlier.length === 0) await write(writer.queue())
    if (claimed.status === 'cancelled') turn.end(turnCancelled)
    // A run that was sent has its place in the line of its gateway.
    if (!isSent) {
      await waitInLine()
      await write(writer.begin())
    }
    // A checked text was said whole, or not at all.
    const output = writeOutput(withTools(answer(), acts), (one) => (isChecked && said !== '' ? [] : writer.write(one)))
    while (!end) {
      const step = await output.next()
      if (step.done) end = step.value
      else if (step.value.length > 0) await write(step.value)
      if (!step.done) await sleep(batchEveryMs)
    }
  } catch (cause) {
    end = { kind: 'broken', cause }
  } finally {
    ;(place as PlaceInLine | null)?.leave()
  }
  if (turn.signal.reason === handedOver) {
    approvals.leave()
    return 'left'
  }
  if (turn.signal.aborted && isSent) {
    await endRun(deps, run).catch((err: unknown) => log.warn({ err, instanceId }, 'a run could not be ended'))
  }
  await approvals.end()
  const outcome = runner.outcomeOf(turn, end.kind === 'failed' ? { kind: 'broken', cause: end.error } : end)
  const { events, response, json } = writer.end(outcome)
  if (outcome.failure) logFailure(log, outcome.failure, { instanceId }, 'a background turn failed')
  await whileDatabaseDown(null, () => rows.end(uuid, toBatch(events), { response, json }))
  return 'ended'
}

/** Whether the line of a turn could not be read or written. */
const isUnavailable = (error: unknown) => error instanceof AppError && error.code === 'unavailable'

function toBatch(events: ResponseEvent[]): EventBatch {
  const json = events.map((event) => event.json())
  return { sequence: Number(JSON.parse(json[0] ?? '{}').sequence_number), events: json }
}

/** Repeats a statement while the database is away, until the turn ends; without a turn, for some minutes. */
async function whileDatabaseDown<T>(turn: Turn | null, act: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await act()
    } catch (error) {
      turn?.signal.throwIfAborted()
      if (!isDatabaseDown(error) || attempt === maxAttempts) throw error
      await sleep(retryEveryMs)
    }
  }
}
