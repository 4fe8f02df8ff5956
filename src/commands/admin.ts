import '#platform/node-version.ts'

import { deleteOrganization } from '#api/organization/delete.ts'
import { listOrganizations, requireOrganization, setDisabled, setTier } from '#api/organization/operator.ts'
import { openForOperator, schemaIsBehind } from '#composition/database.ts'
import type { Db } from '#database/client.ts'
import { type Organization, type Tier, tiers } from '#database/schema.ts'
import { runAs } from '#history/actor.ts'
import { loadConfig } from '#platform/config.ts'

const usage = `usage: npm run admin -- <command>
  list-orgs                   every organization: id, name, tier, instances, state
  set-tier <org> <tier>       ${tiers.join(', ')}
  disable-org <org>           its keys are refused within a second; its agents go on running
  enable-org <org>            its keys work again
  delete-org <org>            deletes it with all its data; a running worker destroys its agents`

const isTier = (text: string): text is Tier => (tiers as readonly string[]).includes(text)

const describe = ({ id, name, subscriptionTier, instanceCount, instanceLimit, disabledAt }: Organization) =>
  [id, name, subscriptionTier, `${instanceCount}/${instanceLimit ?? '∞'}`, disabledAt ? 'disabled' : 'active'].join(
    '\t',
  )

/** Each command returns the text that it prints. All but the first work on one organization. */
const commands = new Map<string, (db: Db, org: string, tier: Tier) => Promise<string>>([
  ['list-orgs', async (db) => (await listOrganizations(db)).map(describe).join('\n')],
  ['set-tier', async (db, org, tier) => describe(await setTier(db, org, tier))],
  ['disable-org', async (db, org) => describe(await setDisabled(db, org, true))],
  ['enable-org', async (db, org) => describe(await setDisabled(db, org, false))],
  [
    'delete-org',
    async (db, org) => {
      const { due, keyHashes, secrets } = await deleteOrganization(db, org)
      return `${org} is deleted: ${keyHashes.length} keys and ${secrets} secrets erased, ${due.length} agents to be destroyed by a worker.`
    },
  ],
])

async function main([name = '', org = '', tier = '']: string[]): Promise<void> {
  const command = commands.get(name)
  if (!command || (name === 'set-tier' && !isTier(tier))) throw new Error(usage)
  const { db, pending, close } = await openForOperator(loadConfig(), 'admin')
  try {
    if (pending > 0) throw new Error(schemaIsBehind(pending))
    if (name !== 'list-orgs') await requireOrganization(db, org)
    console.log(await runAs({ actor: { type: 'operator' } }, () => command(db, org, tier as Tier)))
  } finally {
    await close()
  }
}

await main(process.argv.slice(2)).catch((error: Error) => {
  console.error(error.message || error) // the AggregateError of an unreachable database has no message
  process.exitCode = 1
})
