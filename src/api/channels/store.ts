import { and, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Channel, channels, type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { channelConfigPlace } from '#instances/gateway/configuration.ts'
import { hasStatus } from '#instances/status.ts'
import type { ChannelSettings } from '#openclaw/config.ts'
import type { Vault } from '#platform/secrets.ts'

const named = (instanceId: string, channel: string) =>
  and(eq(channels.instanceId, instanceId), eq(channels.channel, channel))

/** The channels that an instance was ever connected to. The instance must have been found for its organization before. */
export const listRecorded = (db: Db, instanceId: string): Promise<Channel[]> =>
  db.select().from(channels).where(eq(channels.instanceId, instanceId))

export const findRecorded = async (db: Db, instanceId: string, channel: string): Promise<Channel | undefined> =>
  (await db.select().from(channels).where(named(instanceId, channel)))[0]

/** Whether the gateway has taken a channel over, so that its plugin is there and its settings are good. */
export const isTaken = (row: Channel | undefined): row is Channel =>
  row !== undefined && row.step === null && row.errorMessage === null

/** Stores a channel, sealed, and whether a worker has something to do for it. */
async function upsert(
  tx: Db,
  vault: Vault,
  instanceId: string,
  { channel, enabled, config }: ChannelSettings,
  step: string | null,
): Promise<void> {
  const sealedConfig = vault.seal(JSON.stringify(config), channelConfigPlace(instanceId, channel))
  const fields = { enabled, sealedConfig, step, errorMessage: null }
  await tx
    .insert(channels)
    .values({ instanceId, channel, ...fields })
    .onConflictDoUpdate({
      target: [channels.instanceId, channels.channel],
      set: { ...fields, updatedAt: sql`now()` },
    })
}

/** Stores what the gateway has taken over. */
export const recordChannel = (tx: Db, vault: Vault, instanceId: string, settings: ChannelSettings) =>
  upsert(tx, vault, instanceId, settings, null)

/**
 * Stores what a worker is to prepare and to give to the gateway, and makes the instance due, at once or not at all. Null
 * when the instance does not run.
 */
export const requestChannel = (
  db: Db,
  vault: Vault,
  instanceId: string,
  settings: ChannelSettings,
): Promise<Instance | null> =>
  db.transaction(async (tx) => {
    const [row] = await tx
      .update(instances)
      .set({
        generation: sql`${instances.generation} + 1`,
        attempts: 0,
        nextAttemptAt: sql`now()`,
        changedBy: changedBy(),
      })
      .where(and(eq(instances.id, instanceId), hasStatus.running))
      .returning()
    if (!row) return null
    await upsert(tx, vault, instanceId, settings, 'waiting')
    return row
  })

/** Switches a channel off; what was stored stays, and so does what was still to be done. */
export async function switchOff(tx: Db, instanceId: string, channel: string): Promise<void> {
  await tx.update(channels).set({ enabled: false, updatedAt: sql`now()` }).where(named(instanceId, channel))
}

/** Forgets a channel and its credentials. */
export async function forgetChannel(tx: Db, instanceId: string, channel: string): Promise<void> {
  await tx.delete(channels).where(named(instanceId, channel))
}
