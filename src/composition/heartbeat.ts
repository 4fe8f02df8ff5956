import { hostname } from 'node:os'
import pTimeout from 'p-timeout'
import type { Db } from '#database/client.ts'
import { aliveSeconds, countProcesses, type ProcessFacts, recordProcess, removeProcess } from '#database/processes.ts'
import type { Logger } from '#platform/log.ts'
import { type PeriodicTask, runPeriodically } from '#platform/periodic.ts'
import { texts } from '#platform/texts.ts'
import { commit, version } from '#platform/version.ts'
import type { Startup } from './startup.ts'
import type { OpenVault } from './vault.ts'

const heartbeatMs = 10_000
const removeTimeoutMs = 2000

export interface Heartbeat {
  task: PeriodicTask
  /** Whether no worker has been seen lately. False before the second run, and after an outage of the database. */
  areWorkersMissing(): boolean
}

/**
 * Says that this process lives, and looks whether a worker does. The log says when the last one is gone. `describe`
 * says what the process is.
 */
export function createHeartbeat(
  db: Db,
  describe: () => Promise<ProcessFacts>,
  log: Pick<Logger, 'info' | 'warn'>,
): Heartbeat {
  let areMissing = false
  let hasRun = false

  async function run(): Promise<void> {
    const hasRunBefore = hasRun
    hasRun = false
    await recordProcess(db, await describe())
    const isMissing = (await countProcesses(db)).workers === 0
    hasRun = true
    // After a start and after an outage of the database, workers have as long as this process to say that they live.
    if (!hasRunBefore || isMissing === areMissing) return
    areMissing = isMissing
    if (isMissing)
      log.warn(`no worker was seen for ${aliveSeconds} s: changes are accepted and wait. ${texts.startAWorker}`)
    else log.info('a worker is there again')
  }

  return {
    task: { name: 'the heartbeat', everyMs: heartbeatMs, timeoutMs: heartbeatMs, run },
    areWorkersMissing: () => areMissing,
  }
}

/**
 * Opens the heartbeat of this process, which also reads the secret keys again: whoever changes them learns from the rows
 * of the processes which keys each accepts. The drain ends it, and removes the row unless the database is away.
 */
export function openHeartbeat(
  { role, log, drain }: Startup,
  { db, vault, reread }: OpenVault & { db: Db },
  id: string,
): Heartbeat {
  const facts = { id, role, version, commit, host: hostname(), pid: process.pid }
  const describe = async () => {
    await reread().catch((error: unknown) => log.warn({ err: error }, 'the secret keys cannot be read again'))
    return { ...facts, secretKeyIds: [...vault.keyIds] }
  }
  const heartbeat = createHeartbeat(db, describe, log)
  const stopping = new AbortController()
  const running = runPeriodically([heartbeat.task], stopping.signal, log)
  drain.add('connections', async () => {
    stopping.abort()
    const removal = running.then(() => removeProcess(db, id))
    await pTimeout(removal, { milliseconds: removeTimeoutMs, message: false }).catch(() => {})
  })
  return heartbeat
}
