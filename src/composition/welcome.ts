import { isNull } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { organizations } from '#database/schema.ts'
import { defaultRelease, openclawVersion } from '#openclaw/releases.ts'
import { commit, version } from '#platform/version.ts'
import { type SignupMode, signupMode } from '#settings/exposure.ts'
import type { OpenRegion, OpenRegions } from './regions.ts'
import type { Startup } from './startup.ts'

async function isEmpty(db: Db): Promise<boolean> {
  const existing = isNull(organizations.deletedAt)
  return (await db.select({ id: organizations.id }).from(organizations).where(existing).limit(1)).length === 0
}

/** The command that creates the first organization, without the token, because this text gets into logs. */
const createCommands = (url: string): Record<SignupMode, string> => {
  const signUp = `curl -s ${url}/v1/organization/signup -H 'content-type: application/json' -d '{"name": "Acme"}' -w '\\n'`
  return {
    open: signUp,
    token: `${signUp} -H "x-signup-token: $(npm run -s admin -- signup-token)"`,
    closed: 'npm run admin -- create-org Acme',
  }
}

/** How agents run in a region, or why they do not. */
async function describeAgents({ sandboxes }: Pick<OpenRegion, 'sandboxes'>, signal: AbortSignal): Promise<string> {
  const outage = await sandboxes.outage?.(signal)
  return outage?.replace('dockerd cannot be reached', 'DOCKER CANNOT BE REACHED') ?? sandboxes.isolation
}

/**
 * The text that greets a person once Chowder listens: version, addresses, folders, and the next command. It also says
 * when the agents' platform cannot be reached.
 */
export async function welcome(
  { config, dataDir, drain }: Startup,
  { db, url, regions }: { db: Db; url: string; regions: Pick<OpenRegions, 'all'> },
): Promise<string> {
  const all = regions.all()
  const agentsIn = await Promise.all(all.map((region) => describeAgents(region, drain.signal)))
  const database = config.DATABASE_URL ? 'DATABASE_URL' : 'embedded PostgreSQL'
  const queue = config.REDIS_URL ? 'REDIS_URL' : 'in PostgreSQL'
  const agents =
    agentsIn.length === 1
      ? agentsIn[0]
      : agentsIn.map((line, at) => `\n            ${all[at]?.region}: ${line}`).join('')
  const stop = all.some(({ sandboxes }) => sandboxes.stopAll)
    ? 'Ctrl-C stops Chowder and the agents; the next start brings them back.'
    : 'Ctrl-C stops Chowder alone; the agents go on running, and the next start adopts them.'
  const next = (await isEmpty(db))
    ? `Next: create an organization. Its API key is in the answer, and is not shown again.

  ${createCommands(url)[signupMode(config)]}`
    : 'Your organizations are as you left them: npm run admin -- list-orgs'
  return `
  Chowder ${version} (${commit}) is running.

  API       ${url}
  Docs      ${url}/docs
  Data      ${dataDir} (database: ${database}; queue: ${queue})
  Agents    OpenClaw ${openclawVersion(defaultRelease)}. ${agents}
  Stop      ${stop}

  ${next}

`
}
