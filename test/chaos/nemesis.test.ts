import { appendFile, chmod, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, inject, test } from 'vitest'
import { hasQueue, queueKinds } from '../support/queue-backends.ts'
import { cloneDatabase } from '../support/test-database.ts'
import { runNemesis } from './nemesis.ts'
import { tableOf } from './table.ts'

// The options of main.ts; without them a short run with a random seed.
const { CHAOS_SECONDS, CHAOS_QUEUE, CHAOS_REPORT, SEED } = process.env
const seconds = Number(CHAOS_SECONDS ?? 30)
/** For starting, ending, settling and checking: the bounds of the nemesis itself are shorter together. */
const aroundMs = 15 * 60_000

test.concurrent.for(queueKinds.filter((queue) => CHAOS_QUEUE === undefined || queue === CHAOS_QUEUE))(
  'F31: all faults mixed: nothing is lost, leaked or doubled, with the queue in %s',
  { timeout: seconds * 1000 + aroundMs },
  async (queue, { skip }) => {
    if (!hasQueue(queue)) skip('there is no Redis')
    const seed = Number(SEED ?? Math.floor(Math.random() * 1e9))
    const database = await cloneDatabase()
    const folder = await mkdtemp(join(tmpdir(), 'chowder-nemesis-'))
    await chmod(folder, 0o711)
    const print = (line: string) => void process.stderr.write(`${new Date().toISOString()} ${queue}: ${line}\n`)
    try {
      const report = await runNemesis({
        pool: database.pool,
        connection: database.connection,
        redisUrl: queue === 'redis' ? inject('redisUrl') : null,
        seed,
        durationMs: seconds * 1000,
        folder,
        log: print,
      })
      if (CHAOS_REPORT) await appendFile(CHAOS_REPORT, `${JSON.stringify(report)}\n`)
      else print(`\n${tableOf([report])}`)
      expect(report.violations, `SEED=${seed} makes the same choices; the logs are in ${folder}`).toEqual([])
      await rm(folder, { recursive: true, force: true })
    } catch (error) {
      print(`failed with SEED=${seed}; the logs are in ${folder}`)
      throw error
    } finally {
      await database.drop()
    }
  },
)
