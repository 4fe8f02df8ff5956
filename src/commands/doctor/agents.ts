import { and, eq, isNotNull } from 'drizzle-orm'
import { channels, instances, providerKeys } from '#database/schema.ts'
import { isNotTerminated } from '#instances/status.ts'
import { type Check, maxFindings } from './finding.ts'

/** The keys that model providers accept: with a refused key no agent of its organization can ask that provider. */
export const refusedKeys: Check = async function* ({ db }) {
  const refused = await db.select().from(providerKeys).where(isNotNull(providerKeys.refusedAt)).limit(maxFindings)
  for (const { organizationId, provider, refusedAt } of refused) {
    yield {
      area: 'agents',
      what: `${provider} has refused the key of the organization ${organizationId}, last at ${refusedAt?.toISOString()}.`,
      whatToDo: 'Ask the organization for a new key: PATCH /v1/organization with "verify": true tries it first.',
    }
  }
}

/** The channels that workers and OpenClaw have accepted. */
export const failedChannels: Check = async function* ({ db }) {
  const failed = await db
    .select({ id: instances.id, channel: channels.channel, error: channels.errorMessage })
    .from(channels)
    .innerJoin(instances, eq(instances.id, channels.instanceId))
    .where(and(isNotNull(channels.errorMessage), isNotTerminated))
    .limit(maxFindings)
  for (const { id, channel, error } of failed) {
    yield {
      area: 'agents',
      what: `The channel ${channel} of the instance ${id} has an error: ${error}`,
      whatToDo: 'Remove the cause and connect the channel again: docs/incidents.md, “A channel is down”.',
    }
  }
}
