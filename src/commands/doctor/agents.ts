import { and, eq, gt, isNotNull, isNull } from 'drizzle-orm'
import { pMapIterable } from 'p-map'
import { channels, instances, providerKeys } from '#database/schema.ts'
import { texts } from '#errors/texts.ts'
import { unsealToken } from '#instances/row.ts'
import { hasStatus, isNotTerminated } from '#instances/status.ts'
import { readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { type Check, maxFindings } from './finding.ts'

const connectTimeoutMs = 10_000
/** Gateways asked at the same time. */
const concurrency = 16

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

/**
 * OpenClaw starts the channels of each gateway. Asks those that have ended repeatedly: the count is reset after ten
 * healthy minutes, and by then OpenClaw has started channels that it left out.
 */
export const leftOutChannels: Check = async function* ({ db, vault }, signal) {
  if (!vault) return
  const { id, endpoint, sealedToken } = instances
  const enabled = await db
    .select({ id, endpoint, sealedToken, channel: channels.channel })
    .from(channels)
    .innerJoin(instances, eq(id, channels.instanceId))
    .where(and(hasStatus.running, gt(instances.attempts, 1), channels.enabled, isNull(channels.errorMessage)))
  const isLeftOut = async (row: (typeof enabled)[number]) => {
    const token = unsealToken(vault, row)
    const gateway = await connectGateway(row.endpoint as Endpoint, token, { signal, timeoutMs: connectTimeoutMs })
    try {
      return (await readChannelStatus(gateway, row.channel)).error === texts.channelSuppressed
    } finally {
      gateway.close()
    }
  }
  // Workers find gateways that do not answer, and another check finds tokens that cannot be unsealed.
  const ask = async (row: (typeof enabled)[number]) => ({ row, found: await isLeftOut(row).catch(() => false) })
  for await (const { row, found } of pMapIterable(enabled, ask, { concurrency })) {
    if (!found) continue
    yield {
      area: 'agents',
      what: `The channel ${row.channel} of the instance ${row.id} is off: its gateway ended by itself three times within five minutes.`,
      whatToDo:
        'The output of the gateway says why it ended: GET /v1/instances/{id}/logs. OpenClaw starts the channel within ' +
        'ten minutes, and a connect starts it now: docs/incidents.md, “A channel is down”.',
    }
  }
}
