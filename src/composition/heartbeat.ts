import { hostname } from 'node:os'
import pTimeout from 'p-timeout'
import type { Db } from '#database/client.ts'
import { aliveSeconds, beat, beatEveryMs, isWorker, type ProcessFacts, removeProcess } from '#database/processes.ts'
import { texts } from '#errors/texts.ts'
import type { Logger } from '#platform/log.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { commit, version } from '#platform/version.ts'
import type { Startup } from './startup.ts'

const timeoutMs = 10_000
const removeTimeoutMs = 2000

export interface Heartbeat {
  task: PeriodicTask
  /** The processes that were alive at the last beat, including this one, in the order of their ids. */
  alive(): readonly ProcessFacts[]
  /** Whether no worker is alive. False until this process has beaten for 15 s, also after an outage of the database. */
  areWorkersMissing(): boolean
}

/** Beats for this process, and logs when the last worker is lost and when one returns. */
export function createHeartbeat(db: Db, describe: () => ProcessFacts, log: Pick<Logger, 'info' | 'warn'>): Heartbeat {
  let alive: readonly ProcessFacts[] = []
  let areMissing = false
  /** Successful beats in a row. */
  let beats = 0

  async function run(): Promise<void> {
    const beatsBefore = beats
    beats = 0
    alive = await beat(db, describe())
    beats = beatsBefore + 1
    // Workers get as much time as this process to begin their beats.
    const isMissing = !alive.some(isWorker)
    if (beats * beatEveryMs <= aliveSeconds * 1000 || isMissing === areMissing) return
    areMissing = isMissing
    if (isMissing) log.warn(`no worker is alive: changes are accepted and wait. ${texts.startAWorker}`)
    else log.info('a worker is alive again')
  }

  return {
    task: { name: 'beat', everyMs: beatEveryMs, timeoutMs, run },
    alive: () => alive,
    areWorkersMissing: () => areMissing,
  }
}

/**
 * Beats once, then periodically until the drain ends. `regions` are those that this process serves as a worker, and
 * none during the drain. The drain removes the row of the process unless the database is unreachable.
 */
export async function openHeartbeat(
  { role, log, drain }: Startup,
  db: Db,
  id: string,
  regions: () => string[],
): Promise<Heartbeat> {
  const facts = { id, role, version, commit, host: hostname(), pid: process.pid }
  const describe = () => ({ ...facts, regions: drain.signal.aborted ? [] : regions() })
  const heartbeat = createHeartbeat(db, describe, log)
  await heartbeat.task.run(drain.signal)
  const stopping = new AbortController()
  const running = runPeriodically([heartbeat.task], stopping.signal, log)
  drain.add('connections', async () => {
    stopping.abort()
    const removal = running.then(() => removeProcess(db, id))
    await pTimeout(removal, { milliseconds: removeTimeoutMs, message: false }).catch(() => {})
  })
  return heartbeat
}
