import pTimeout from 'p-timeout'
import { aliveProcesses, isWorker } from '#database/processes.ts'
import { StartupError } from '#errors/startup-error.ts'
import { texts } from '#errors/texts.ts'
import { poll } from '#platform/poll.ts'
import type { Check, DoctorDeps, Finding } from './finding.ts'

const answerTimeoutMs = 5000
const pauseMs = 200
/** Workers take jobs at once, and the queue never holds more jobs than workers need soon. */
const maxWaitMs = 10 * 60_000

const isReachable = ({ queue }: DoctorDeps) =>
  poll(() => queue.ping(AbortSignal.timeout(answerTimeoutMs)), { pauseMs, timeoutMs: answerTimeoutMs })

const unreachable: Finding = {
  area: 'queue',
  what: 'The queue cannot be reached. Changes are accepted, and are carried out once it answers.',
  whatToDo: 'Check REDIS_URL, and that Redis runs; without REDIS_URL the queue is in the database.',
}

const schemaIsBehind: Finding = {
  area: 'queue',
  what: 'The queue has no schema in the database, or an old one.',
  whatToDo: 'Run npm run migrate.',
}

/** The queue is reachable and has its schema, and workers take its jobs. */
export const queueAnswers: Check = async function* (deps) {
  const { queue } = deps
  if (!(await isReachable(deps))) {
    yield unreachable
    return
  }
  try {
    await pTimeout(queue.check(), { milliseconds: answerTimeoutMs })
  } catch (error) {
    yield error instanceof StartupError ? schemaIsBehind : unreachable
    return
  }
  const alive = await aliveProcesses(deps.db)
  if (alive.length > 0 && !alive.some(isWorker)) {
    yield { area: 'queue', what: 'No worker runs.', whatToDo: texts.startAWorker }
    return
  }
  const waitedMs = await pTimeout(queue.oldestWaitMs(), { milliseconds: answerTimeoutMs })
  if (waitedMs === null || waitedMs < maxWaitMs) return
  yield {
    area: 'queue',
    what: `A job has waited in the queue for more than ${maxWaitMs / 60_000} min.`,
    whatToDo: 'Check that a worker runs. If all workers are busy, add workers.',
  }
}
