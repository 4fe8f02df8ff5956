import './platform/node-version.ts'

import { access } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { type Db, openDb } from './database/client.ts'
import { reachEmbeddedPostgres, startEmbeddedPostgres } from './database/embedded.ts'
import { pendingMigrations } from './database/migrate.ts'
import { type Organization, type Tier, tiers } from './database/schema.ts'
import { deleteOrganization } from './organization/delete.ts'
import { listOrganizations, mustExist, setDisabled, setTier } from './organization/operator.ts'
import { type Config, loadConfig } from './platform/config.ts'
import { dataFolder } from './platform/data-folder.ts'
import { openLog } from './platform/log.ts'
import { runAs } from './platform/origin.ts'

const connectTimeoutMs = 5000
const statementTimeoutMs = 60_000

const usage = `usage: npm run admin -- <command>
  list-orgs                   every organization: id, name, tier, instances, state
  set-tier <org> <tier>       ${tiers.join(', ')}
  disable-org <org>           its keys are refused within a second; its agents are left as they are
  enable-org <org>            takes that back
  delete-org <org>            deletes it with everything it has; a running worker destroys its agents`

const isTier = (text: string): text is Tier => (tiers as readonly string[]).includes(text)

const line = ({ id, name, subscriptionTier, instanceCount, instanceLimit, disabledAt }: Organization) =>
  [id, name, subscriptionTier, `${instanceCount}/${instanceLimit ?? '∞'}`, disabledAt ? 'disabled' : 'active'].join(
    '\t',
  )

/** What each command prints. All but the first are about one organization. */
const commands = new Map<string, (db: Db, org: string, tier: Tier) => Promise<string>>([
  ['list-orgs', async (db) => (await listOrganizations(db)).map(line).join('\n')],
  ['set-tier', async (db, org, tier) => line(await setTier(db, org, tier))],
  ['disable-org', async (db, org) => line(await setDisabled(db, org, true))],
  ['enable-org', async (db, org) => line(await setDisabled(db, org, false))],
  [
    'delete-org',
    async (db, org) => {
      const { due, keyHashes, secrets } = await deleteOrganization(db, org)
      return `${org} is deleted: ${keyHashes.length} keys and ${secrets} secrets erased, ${due.length} agents to be destroyed by a worker.`
    },
  ],
])

/** The database as Chowder opens it; beside a running one its embedded PostgreSQL is joined, else it is started. */
async function openDatabase(config: Config): Promise<{ connection: pg.PoolConfig; close(): Promise<void> }> {
  if (config.DATABASE_URL) return { connection: { connectionString: config.DATABASE_URL }, close: async () => {} }
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  await access(join(dataDir, 'postgres', 'data')).catch(() => {
    throw new Error(`There is no database in ${dataDir}. Set CHOWDER_DATA_DIR or DATABASE_URL as Chowder has them.`)
  })
  const running = await reachEmbeddedPostgres(dataDir)
  if (running) return { connection: running, close: async () => {} }
  const started = await startEmbeddedPostgres({ dataDir, log: openLog('warn', 'admin', false) })
  return { connection: started.connection, close: () => started.stop() }
}

async function main([name = '', org = '', tier = '']: string[]): Promise<void> {
  const command = commands.get(name)
  if (!command || (name === 'set-tier' && !isTier(tier))) throw new Error(usage)
  const { connection, close } = await openDatabase(loadConfig())
  const pool = new pg.Pool({
    ...connection,
    max: 1,
    connectionTimeoutMillis: connectTimeoutMs,
    statement_timeout: statementTimeoutMs,
    query_timeout: statementTimeoutMs + connectTimeoutMs,
    application_name: 'chowder-admin',
  })
  try {
    const pending = await pendingMigrations(pool)
    if (pending > 0)
      throw new Error(`The database's schema is ${pending} migrations behind. Run npm run migrate first.`)
    const db = openDb(pool)
    if (name !== 'list-orgs') await mustExist(db, org)
    console.log(await runAs({ actor: { type: 'operator' } }, () => command(db, org, tier as Tier)))
  } finally {
    await pool.end()
    await close()
  }
}

await main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message || error) // a database that is away has an error of several without a message
  process.exitCode = 1
})
