import '#platform/node-version.mjs'
import '#platform/package-lookups.ts'

import { StartupError } from '#errors/startup-error.ts'
import { parseCommandLine } from '#platform/command-line.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'
import { readSecretKeys } from '#platform/secret-key.ts'
import { createVault } from '#platform/secrets.ts'
import { type Config, loadConfig } from '#settings/config.ts'
import type { Area, Finding } from './doctor/finding.ts'

// Imported after the effects of the imports above.
const { openForOperator } = await import('#composition/database.ts')
const { withRelayPort } = await import('#composition/installation.ts')
const { queueBackend } = await import('#composition/queue.ts')
const { hostDiskOf, openRegions } = await import('#composition/regions.ts')
const { createDriver } = await import('#composition/sandboxes.ts')
const { createQueue } = await import('#lifecycle/queue/queue.ts')
const { examine } = await import('./doctor/examine.ts')
const { describeFindings, findingsAsData, storeFindings } = await import('./doctor/report.ts')

const usage = `usage: npm run doctor [-- --json]
  Examines the installation, beside a running Chowder or without one, and prints what it expected and what it found. It
  changes nothing. Exits with 0 if it found nothing, with 1 if it found something, with 2 if it could not examine it.
  --json prints the report for programs.`

/** A small installation is examined in less time. */
const reportEveryMs = 10_000

/** Returns the findings, and stores their numbers for the metrics. */
async function diagnose(config: Config): Promise<Finding[]> {
  const log = createLog({ LOG_LEVEL: 'error' }, 'doctor', false)
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const { db, connection, pending, close } = await openForOperator(config, 'doctor')
  const queue = createQueue(queueBackend(config, connection, 'chowder-doctor-queue'), log)
  const startedAt = performance.now()
  let area: Area = 'schema'
  const timer = setInterval(
    () => console.error(`after ${Math.round((performance.now() - startedAt) / 1000)} s: examining ${area}`),
    reportEveryMs,
  )
  try {
    if (pending > 0) {
      const what = `The schema is ${pending} migrations behind. Nothing else was examined.`
      return [{ area, what, whatToDo: 'Run npm run migrate.' }]
    }
    const keys = await readSecretKeys(config.CHOWDER_SECRET_KEY, dataDir)
    const withPort = await withRelayPort(config, db)
    const regions = (await openRegions({ config: withPort, dataDir, db, log }, createDriver)).all()
    const vault = keys && createVault(keys)
    const hostDisk = hostDiskOf(dataDir, regions)
    const findings = await examine({ config: withPort, db, regions, hostDisk, vault, queue }, (next) => {
      area = next
    })
    await storeFindings(db, findings)
    return findings
  } finally {
    clearInterval(timer)
    await queue.close()
    await close()
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parseCommandLine(usage, { json: { type: 'boolean' } })
  if (positionals.length > 0) throw new StartupError(`There is no use for ${positionals.join(' ')}.\n${usage}`)
  const config = loadConfig()
  const findings = await diagnose(config)
  console.log(
    values.json ? JSON.stringify(findingsAsData(config, findings), null, 2) : describeFindings(config, findings),
  )
  if (findings.length > 0) process.exitCode = 1
}

await main().catch((error: Error) => {
  console.error(error.message || error)
  process.exitCode = 2
})
