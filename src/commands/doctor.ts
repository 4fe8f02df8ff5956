import '#platform/node-version.mjs'
import '#platform/package-lookups.ts'

import { parseCommandLine } from '#platform/command-line.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createHostDisk } from '#platform/host-disk.ts'
import { createLog } from '#platform/log.ts'
import { readSecretKeys } from '#platform/secret-key.ts'
import { createVault } from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import { type Config, loadConfig } from '#settings/config.ts'
import type { Finding } from './doctor/finding.ts'

// Imported once the imports above have had their effect.
const { openForOperator } = await import('#composition/database.ts')
const { withRelayPort } = await import('#composition/installation.ts')
const { queueBackend } = await import('#composition/queue.ts')
const { openRegions } = await import('#composition/regions.ts')
const { createDriver } = await import('#composition/sandboxes.ts')
const { createQueue } = await import('#lifecycle/queue.ts')
const { examine, repair } = await import('./doctor/examine.ts')
const { readLastPart, rowsOfAPart, startPart, storeLastPart } = await import('./doctor/part.ts')
const { describeFindings, findingsAsData, storeFindings } = await import('./doctor/report.ts')

const usage = `usage: npm run doctor [-- --all] [--fix] [--json]
  Looks at the installation, beside a running Chowder or without one, and says what it looked at and what it found. Exits
  with 0 if it found nothing, with 1 if it found something, with 2 if it could not look. Of a table with more than
  ${rowsOfAPart} rows it reads the next part, so that it takes as long with many rows as with few; with --all it reads
  everything. With --fix it repairs what is safe to repair, and looks again. --json prints the report for programs.`

/** An installation of a few agents in which nothing is found is looked at in less time. */
const reportEveryMs = 10_000

interface Options {
  all: boolean
  fix: boolean
  /** Prints a line about each repair. */
  print(line: string): void
}

/** Returns the findings that are left, and whether there are rows that it has not read. */
async function diagnose(config: Config, { all, fix, print }: Options): Promise<{ left: Finding[]; isPart: boolean }> {
  const log = createLog({ LOG_LEVEL: 'error' }, 'doctor', false)
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const { db, connection, pending, close } = await openForOperator(config, 'doctor')
  const queue = createQueue(queueBackend(config, connection, 'chowder-doctor-queue'), log)
  const startedAt = performance.now()
  let doing = 'looking at the schema'
  const report = (now: string) => {
    doing = now
  }
  const timer = setInterval(
    () => console.error(`after ${Math.round((performance.now() - startedAt) / 1000)} s: ${doing}`),
    reportEveryMs,
  )
  try {
    if (pending > 0) {
      const what = `The schema is ${pending} migrations behind. Nothing else was looked at.`
      return { left: [{ area: 'schema', what, whatToDo: 'Run npm run migrate.' }], isPart: false }
    }
    const secret = await readSecretKeys(config, dataDir)
    const withPort = await withRelayPort(config, db)
    const regions = (await openRegions({ config: withPort, dataDir, db, log }, createDriver)).all()
    const vault = secret && createVault(secret.keys)
    const hostDisk = createHostDisk(dataDir, config.DISK_FLOOR_MB)
    const last = await readLastPart(db)
    // It repairs what the run before has found.
    const part = all ? undefined : startPart(fix ? last.from : last.reached)
    const deps = { config: withPort, db, regions, hostDisk, vault, queue, ...(part && { part }) }
    const found = await examine(deps, { report })
    const left = fix && found.length > 0 ? await repair(deps, found, print, { report }) : found
    const isRepaired = fix && !left.some((finding) => finding.fix)
    if (part) await storeLastPart(db, { from: isRepaired ? part.reached : part.from, reached: part.reached })
    const isPart = part?.isCut ?? false
    // The metrics and their alerts are about the whole installation.
    if (!isPart) await storeFindings(db, left)
    return { left, isPart }
  } finally {
    clearInterval(timer)
    await queue.close()
    await close()
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parseCommandLine(usage, {
    all: { type: 'boolean' },
    fix: { type: 'boolean' },
    json: { type: 'boolean' },
  })
  if (positionals.length > 0) throw new StartupError(`There is no use for ${positionals.join(' ')}.\n${usage}`)
  const print = (line: string) => (values.json ? console.error(line) : console.log(line))
  const config = loadConfig()
  const { left, isPart } = await diagnose(config, { all: values.all ?? false, fix: values.fix ?? false, print })
  console.log(
    values.json
      ? JSON.stringify(findingsAsData(config, left, isPart), null, 2)
      : describeFindings(config, left, isPart),
  )
  if (left.length > 0) process.exitCode = 1
}

await main().catch((error: Error) => {
  console.error(error.message || error)
  process.exitCode = 2
})
