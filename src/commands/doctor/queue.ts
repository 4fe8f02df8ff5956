import { setTimeout as sleep } from 'node:timers/promises'
import type { Check, DoctorDeps } from './finding.ts'

const answerWithinMs = 5000
const betweenAsksMs = 200
/** Bells are taken in moments; in a flood no more of them wait than workers have use for. */
const oldestWaitMs = 10 * 60_000

const isAnswering = async ({ queue }: DoctorDeps): Promise<boolean> => {
  for (const deadline = performance.now() + answerWithinMs; performance.now() < deadline; await sleep(betweenAsksMs)) {
    if (await queue.ping(AbortSignal.timeout(answerWithinMs))) return true
  }
  return false
}

async function within<T>(ms: number, promise: Promise<T>): Promise<T> {
  const late = AbortSignal.timeout(ms)
  const { promise: tooLate, reject } = Promise.withResolvers<never>()
  late.addEventListener('abort', () => reject(late.reason), { once: true })
  return Promise.race([promise, tooLate])
}

/** The queue can be reached, has its schema, and its jobs are taken. */
export const queueAnswers: Check = async function* (deps) {
  const { queue } = deps
  if (!(await isAnswering(deps))) {
    yield {
      check: 'queue',
      what: 'The queue cannot be reached. Intents are accepted, and worked off only when it is back.',
      whatToDo: 'See that REDIS_URL is right and Redis runs; without REDIS_URL the queue is in the database.',
    }
    return
  }
  try {
    await within(answerWithinMs, queue.check())
  } catch {
    yield {
      check: 'queue',
      what: 'The queue has no schema in the database, or an old one.',
      whatToDo: 'Run npm run migrate.',
    }
    return
  }
  const waited = await within(answerWithinMs, queue.oldestWaitMs())
  if (waited === null || waited < oldestWaitMs) return
  yield {
    check: 'queue',
    what: `A job has waited in the queue for over ${oldestWaitMs / 60_000} min.`,
    whatToDo: 'See that a worker runs, and raise WORKER_CONCURRENCY or add workers if they are all busy.',
  }
}
