import type { Channel, Instance } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { changeConfig } from '#instances/gateway/change.ts'
import { unsealChannel } from '#instances/gateway/configuration.ts'
import { getInstance } from '#instances/row.ts'
import { requireRunning } from '#instances/status.ts'
import { readUntil } from '#instances/wait.ts'
import type { ChannelSettings } from '#openclaw/config/config.ts'
import { needsPlugin } from '#openclaw/release/channel-plugins.ts'
import { getChannelDefinition, type Settings } from './catalogue.ts'
import type { ChannelDeps } from './deps.ts'
import { removeChannel } from './disconnect.ts'
import type { QrLogin, StartQrLogin } from './qr-login.ts'
import { mergeSettings } from './settings.ts'
import { findStoredChannel, isApplied, requestChannel, storeAppliedChannel } from './store.ts'
import { waitUntilConnected } from './wait-until-connected.ts'

export interface ConnectDeps extends ChannelDeps {
  startQrLogin: StartQrLogin
}

const maxPreparationMs = 60_000

export type Connection =
  | QrLogin
  | { status: 'connected'; qr: null; message: null }
  | { status: 'preparing'; qr: null; message: string }

/**
 * Connects a channel with `config` merged into its stored settings. Returns once the channel is connected; for an
 * interactive channel, once there is a QR code; with `preparing`, when its plugin takes longer than 60 s. When the
 * platform refuses the credentials or cannot be reached, everything stays as it was. `signal` ends the wait for the
 * plugin; the preparation continues. Throws invalid, not_found, conflict, gateway_unreachable, gateway_timeout,
 * unavailable.
 */
export async function connectChannel(
  deps: ConnectDeps,
  organizationId: string,
  instanceId: string,
  { channel, config, signal }: { channel: string; config: Settings; signal: AbortSignal },
): Promise<Connection> {
  const { db, vault } = deps
  const { type } = getChannelDefinition(channel)
  const instance = await getInstance(db, organizationId, instanceId)
  const stored = await findStoredChannel(db, organizationId, instanceId, channel)
  const merged = mergeSettings(channel, config, stored ? unsealChannel(vault, stored).config : null)
  await deps.findGateway(organizationId, instanceId) // wakes the agent
  const settings = { channel, enabled: true, config: merged }

  const needsPreparation = !(stored && isApplied(stored)) && needsPlugin(instance.openclawVersion, channel)
  if (needsPreparation) {
    const isPrepared = await prepareChannel(deps, instance, settings, signal)
    if (!isPrepared) return { status: 'preparing', qr: null, message: texts.channelPreparing }
  } else {
    await configureChannel(deps, organizationId, instanceId, channel, config)
  }
  if (type === 'interactive') return deps.startQrLogin(organizationId, instanceId, channel)
  if (needsPreparation) await verifyOrRemove(deps, organizationId, instanceId, settings)
  return { status: 'connected', qr: null, message: null }
}

/**
 * Merges `config` again, into the settings stored at the moment of the change: of two concurrent connects neither loses
 * its settings, and a logout meanwhile stays in effect.
 */
async function configureChannel(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
  config: Settings,
): Promise<void> {
  let settings: ChannelSettings
  await changeConfig(deps, organizationId, instanceId, {
    edit({ channels, ...others }) {
      const before = channels.find((other) => other.channel === channel)
      settings = { channel, enabled: true, config: mergeSettings(channel, config, before?.config ?? null) }
      return { ...others, channels: [...channels.filter((other) => other !== before), settings] }
    },
    store: (tx) => storeAppliedChannel(tx, deps.vault, instanceId, settings),
    async verify(gateway, signal) {
      if (getChannelDefinition(channel).type === 'token') await waitUntilConnected(gateway, settings, signal)
    },
    whenNotRunning: 'refuse',
  })
}

/**
 * Lets a worker install the plugin and apply the settings. False when `signal` is aborted or 60 s have passed first.
 * Throws conflict when the instance does not run, unavailable or invalid with the reason of a failure.
 */
async function prepareChannel(
  { db, vault, queue }: ChannelDeps,
  instance: Instance,
  settings: ChannelSettings,
  signal: AbortSignal,
): Promise<boolean> {
  const { id, organizationId } = instance
  const requested = await requestChannel(db, vault, organizationId, id, settings)
  if (!requested) {
    requireRunning(instance)
    throw new AppError('resource_busy', texts.isBusy) // it ran a moment ago
  }
  queue.enqueue()
  const read = () => findStoredChannel(db, organizationId, id, settings.channel)
  const isFinished = (channel: Channel | undefined) => channel?.step == null
  const channel = await readUntil(await read(), isFinished, read, { organizationId, waitMs: maxPreparationMs, signal })
  if (!isFinished(channel)) return false
  if (!channel) throw new AppError('resource_busy', texts.isBusy) // it was logged out in the meantime
  if (channel.errorMessage === null) return true
  throw new AppError(channel.enabled ? 'unavailable' : 'channel_refused', channel.errorMessage)
}

async function verifyOrRemove(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
  settings: ChannelSettings,
): Promise<void> {
  try {
    await deps.askGateway(organizationId, instanceId, (gateway, signal) =>
      waitUntilConnected(gateway, settings, signal),
    )
  } catch (error) {
    await removeChannel(deps, organizationId, instanceId, settings.channel)
    throw error
  }
}
