import '#platform/node-version.mjs'
import '#platform/package-lookups.ts'

import { createInterface } from 'node:readline/promises'
import type { Db } from '#database/client.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { createLog } from '#platform/log.ts'
import { type Config, loadConfig } from '#settings/config.ts'

// Imported after the effects of the imports above.
const { openForOperator, schemaIsBehind } = await import('#composition/database.ts')
const { openRegions, regionPlaces } = await import('#composition/regions.ts')
const { createDriver } = await import('#composition/sandboxes.ts')
const { defaultTier } = await import('#composition/settings.ts')
const { openVaultForOperator } = await import('#composition/vault.ts')
const { administer, readCommandLine } = await import('./admin/administer.ts')

/** Null without a terminal, where input is impossible. */
async function ask(question: string): Promise<string | null> {
  if (!process.stdin.isTTY) return null
  const terminal = createInterface({ input: process.stdin, output: process.stderr })
  try {
    return await terminal.question(question)
  } finally {
    terminal.close()
  }
}

async function isOneOrganization(config: Config, db: Db): Promise<boolean> {
  const log = createLog({ LOG_LEVEL: 'error' }, 'admin', false)
  const regions = await openRegions({ config, dataDir: dataFolder(config.CHOWDER_DATA_DIR), db, log }, createDriver)
  return regions.all().some(({ sandboxes }) => sandboxes.isForOneOrganization)
}

async function main(args: string[]): Promise<void> {
  const line = readCommandLine(args)
  if (typeof line === 'string') return console.log(line)
  const config = loadConfig()
  const { db, pending, close } = await openForOperator(config, 'admin')
  try {
    if (pending > 0) throw new Error(schemaIsBehind(pending))
    const deps = {
      db,
      defaultTier: defaultTier(config),
      isOneOrganization: () => isOneOrganization(config, db),
      regions: () => regionPlaces({ config, db }),
      vault: () => openVaultForOperator(config, db),
      report: (text: string) => console.error(text),
      ask,
    }
    console.log(await administer(deps, line))
  } finally {
    await close()
  }
}

await main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message || error) // the AggregateError of an unreachable database has no message
  process.exitCode = 1
})
