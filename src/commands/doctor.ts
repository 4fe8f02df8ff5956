import '#platform/node-version.ts'

import { parseArgs } from 'node:util'
import { openForOperator } from '#composition/database.ts'
import { queueBackend } from '#composition/queue.ts'
import { createDriver } from '#composition/sandboxes.ts'
import { createQueue } from '#lifecycle/queue.ts'
import { type Config, loadConfig } from '#platform/config.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'
import { readSecretKey } from '#platform/secret-key.ts'
import { createVault } from '#platform/secrets.ts'
import { examine, repair } from './doctor/examine.ts'
import type { Finding } from './doctor/finding.ts'

const usage = `usage: npm run doctor [-- --fix]
  Checks the whole installation, beside a running Chowder or without one. Exits with 0 if it found nothing, with 1 if it
  found something, with 2 if it could not check. With --fix it repairs what is safe to repair, and checks again.`

const print = ({ check, what, whatToDo }: Finding) => console.log(`${check.padEnd(8)} ${what}\n         ${whatToDo}`)

/** Returns the number of findings that are left. */
async function diagnose(config: Config, fix: boolean): Promise<number> {
  const log = createLog('error', 'doctor', false)
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const { db, connection, pending, close } = await openForOperator(config, 'doctor')
  const queue = createQueue(queueBackend(config, connection, 'chowder-doctor-queue'), log)
  try {
    if (pending > 0) {
      print({ check: 'schema', what: `The schema is ${pending} migrations behind.`, whatToDo: 'Run npm run migrate.' })
      return 1
    }
    const key = await readSecretKey(config.CHOWDER_SECRET_KEY, dataDir)
    const sandboxes = await createDriver({ config, dataDir, db, log })
    const deps = { db, sandboxes, vault: key && createVault(key), queue }
    const found = await examine(deps)
    found.forEach(print)
    if (!fix || found.length === 0) return found.length
    const left = await repair(deps, found, (line) => console.log(line))
    if (left.length > 0) console.log('\nStill found:')
    left.forEach(print)
    return left.length
  } finally {
    await queue.close()
    await close()
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { fix: { type: 'boolean' }, help: { type: 'boolean' } } })
  if (values.help) return console.log(usage)
  const left = await diagnose(loadConfig(), values.fix ?? false)
  console.log(left === 0 ? 'Everything is as it must be.' : `${left} findings.`)
  if (left > 0) process.exitCode = 1
}

await main().catch((error: Error) => {
  console.error(error.message || error)
  process.exitCode = 2
})
