import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { getInstance } from '#instances/row.ts'
import { getChannelDefinition } from './catalogue.ts'
import type { ChannelDeps } from './deps.ts'
import { deleteChannel, disableChannel, findStoredChannel, isApplied } from './store.ts'

/** Disables a channel and keeps its credentials. An instance that does not run applies this at its next start. */
export async function disconnectChannel(
  deps: ChangeDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<void> {
  getChannelDefinition(channel)
  await getInstance(deps.db, organizationId, instanceId)
  const stored = await findStoredChannel(deps.db, organizationId, instanceId, channel)
  if (!stored?.enabled) return
  await changeConfig(deps, organizationId, instanceId, {
    edit: ({ channels, ...others }) => ({
      ...others,
      channels: channels.map((other) => (other.channel === channel ? { ...other, enabled: false } : other)),
    }),
    store: (tx, { id }) => disableChannel(tx, id, channel),
    whenNotRunning: 'store',
  })
}

/** Ends the session at the platform, if the channel has one, and deletes the credentials. */
export async function logOutChannel(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<void> {
  const { type } = getChannelDefinition(channel)
  await getInstance(deps.db, organizationId, instanceId)
  const stored = await findStoredChannel(deps.db, organizationId, instanceId, channel)
  if (!stored) return
  if (type === 'interactive' && isApplied(stored)) {
    await deps.askGateway(organizationId, instanceId, (gateway) => gateway.call('channels.logout', { channel }))
  }
  await removeChannel(deps, organizationId, instanceId, channel)
}

/** Deletes a channel with its credentials from the instance, whether it runs or not. */
export async function removeChannel(
  deps: ChangeDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<void> {
  await changeConfig(deps, organizationId, instanceId, {
    edit: ({ channels, ...others }) => ({
      ...others,
      channels: channels.filter((other) => other.channel !== channel),
    }),
    store: (tx, { id }) => deleteChannel(tx, id, channel),
    whenNotRunning: 'store',
  })
}
