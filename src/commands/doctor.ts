import '#platform/node-version.ts'

import { parseArgs } from 'node:util'
import { openForOperator } from '#composition/operator-database.ts'
import { createSandboxes } from '#composition/sandboxes.ts'
import { createQueue } from '#lifecycle/queue.ts'
import type { QueueBackend } from '#lifecycle/queue-backend.ts'
import { type Config, loadConfig } from '#platform/config.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'
import { readSecretKey } from '#platform/secret-key.ts'
import { createVault } from '#platform/secrets.ts'
import { examine, repair } from './doctor/examine.ts'
import type { Finding } from './doctor/finding.ts'

const usage = `usage: npm run doctor [-- --fix]
  Looks whether everything is as it must be, beside a running Chowder or without one. Exits with 0 when it is, with 1
  when something was found, with 2 when it could not look. With --fix it repairs what is safe, and looks again.`

const print = ({ check, what, whatToDo }: Finding) => console.log(`${check.padEnd(8)} ${what}\n         ${whatToDo}`)

/** The number of findings that are left. */
async function look(config: Config, fix: boolean): Promise<number> {
  const log = createLog('error', 'doctor', false)
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const { db, connection, pending, close } = await openForOperator(config, 'doctor')
  const backend: QueueBackend = config.REDIS_URL
    ? { kind: 'redis', url: config.REDIS_URL }
    : { kind: 'postgres', connection: { ...connection, application_name: 'chowder-doctor-queue' } }
  const queue = createQueue(backend, log)
  try {
    if (pending > 0) {
      print({ check: 'schema', what: `The schema is ${pending} migrations behind.`, whatToDo: 'Run npm run migrate.' })
      return 1
    }
    const key = await readSecretKey(config.CHOWDER_SECRET_KEY, dataDir)
    const sandboxes = await createSandboxes({ config, dataDir, db, log })
    const deps = { db, sandboxes, vault: key && createVault(key), queue }
    const found = await examine(deps)
    found.forEach(print)
    if (!fix || found.length === 0) return found.length
    const left = await repair(deps, found, (line) => console.log(line))
    if (left.length > 0) console.log('\nWhat is left:')
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
  const left = await look(loadConfig(), values.fix ?? false)
  console.log(left === 0 ? 'Everything is as it must be.' : `${left} findings.`)
  if (left > 0) process.exitCode = 1
}

await main().catch((error: Error) => {
  console.error(error.message || error)
  process.exitCode = 2
})
