import { and, eq, getTableColumns, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Channel, channels, type Instance, instances } from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { channelConfigPlace, requireSettingsBound } from '#instances/gateway/configuration.ts'
import { raiseGeneration } from '#instances/intent.ts'
import { isOwnedBy } from '#instances/row.ts'
import { hasStatus } from '#instances/status.ts'
import type { ChannelSettings } from '#openclaw/config/config.ts'
import type { Vault } from '#platform/secrets.ts'

const isChannel = (instanceId: string, channel: string) =>
  and(eq(channels.instanceId, instanceId), eq(channels.channel, channel))

const selectStored = (db: Db) =>
  db.select(getTableColumns(channels)).from(channels).innerJoin(instances, eq(instances.id, channels.instanceId))

/** The stored channels of an instance: those that were connected and not logged out, disabled ones too. */
export const listStoredChannels = (db: Db, organizationId: string, instanceId: string): Promise<Channel[]> =>
  selectStored(db).where(isOwnedBy(organizationId, instanceId))

export async function findStoredChannel(
  db: Db,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<Channel | undefined> {
  const [row] = await selectStored(db).where(and(isOwnedBy(organizationId, instanceId), eq(channels.channel, channel)))
  return row
}

/** Whether the gateway has applied a channel: its plugin is installed and its settings are accepted. */
export const isApplied = (row: Channel): boolean => row.step === null && row.errorMessage === null

async function upsert(
  tx: Db,
  vault: Vault,
  instanceId: string,
  { channel, enabled, config }: ChannelSettings,
  step: 'waiting' | null,
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
  await requireSettingsBound(tx, instanceId)
}

/** Stores a channel that the gateway has applied, in the transaction of that change. */
export const storeAppliedChannel = (tx: Db, vault: Vault, instanceId: string, settings: ChannelSettings) =>
  upsert(tx, vault, instanceId, settings, null)

/**
 * Stores a channel for a worker to prepare and apply, and makes the instance due, in one transaction. Null when the
 * instance does not run.
 */
export const requestChannel = (
  db: Db,
  vault: Vault,
  organizationId: string,
  instanceId: string,
  settings: ChannelSettings,
): Promise<Instance | null> =>
  db.transaction(async (tx) => {
    const [row] = await tx
      .update(instances)
      .set({ ...raiseGeneration('connectChannel'), changedBy: changedBy() })
      .where(and(isOwnedBy(organizationId, instanceId), hasStatus.running))
      .returning()
    if (!row) return null
    await upsert(tx, vault, row.id, settings, 'waiting')
    return row
  })

/** Disables a channel, in the transaction of that change. Keeps its settings and a pending preparation. */
export async function disableChannel(tx: Db, instanceId: string, channel: string): Promise<void> {
  await tx.update(channels).set({ enabled: false, updatedAt: sql`now()` }).where(isChannel(instanceId, channel))
}

/** Deletes a channel with its credentials, in the transaction of that change. */
export async function deleteChannel(tx: Db, instanceId: string, channel: string): Promise<void> {
  await tx.delete(channels).where(isChannel(instanceId, channel))
}
