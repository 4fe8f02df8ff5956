import type { Channel, Instance } from '#database/schema.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { type ChangeDeps, changeConfig } from '#instances/gateway/change.ts'
import { unsealChannel } from '#instances/gateway/configuration.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { readUntil } from '#instances/wait.ts'
import { needsPlugin } from '#openclaw/channel-plugins.ts'
import type { ChannelSettings } from '#openclaw/config.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { channelEntry, settingsFrom } from './catalogue.ts'
import { waitUntilConnected } from './health.ts'
import { type Login, startLogin } from './login.ts'
import { findRecorded, forgetChannel, isTaken, recordChannel, requestChannel, switchOff } from './store.ts'

export interface ConnectDeps extends ChangeDeps {
  askGateway: AskGateway
}

const prepareAtMostMs = 60_000

export type Connection =
  | Login
  | { status: 'connected'; qr: null; message: null }
  | { status: 'preparing'; qr: null; message: string }

/**
 * Connects a channel, with the credentials in `given` on top of what is stored, and answers once it is up: with an
 * interactive one once there is a code to scan, with one whose plugin takes longer than 60 s to prepare before that. A
 * platform that refuses the credentials or is not reached leaves everything as it was. `left` ends the waiting for the
 * plugin, not the preparing. Throws invalid, not_found, conflict, gateway_unreachable, gateway_timeout, unavailable.
 */
export async function connectChannel(
  deps: ConnectDeps,
  organizationId: string,
  instanceId: string,
  { channel, given, left }: { channel: string; given: Record<string, unknown>; left: AbortSignal },
): Promise<Connection> {
  const { db, vault, askGateway } = deps
  const { type } = channelEntry(channel)
  const row = await getInstance(db, organizationId, instanceId)
  const { id } = row // as it is stored: credentials are sealed for it, and sandboxes are named by it
  const recorded = await findRecorded(db, id, channel)
  const config = settingsFrom(channel, given, recorded ? unsealChannel(vault, recorded).config : null)
  const settings = { channel, enabled: true, config }

  const isPrepared = isTaken(recorded) || !needsPlugin(row.openclawVersion, channel)
  if (!isPrepared) {
    const prepared = await prepareChannel(deps, row, settings, left)
    if (prepared === 'still preparing') return { status: 'preparing', qr: null, message: texts.channelPreparing }
  }
  if (isPrepared) await configureChannel(deps, organizationId, id, { channel, given })
  if (type === 'interactive') {
    return askGateway(organizationId, id, (gateway) => startLogin(gateway, channel))
  }
  if (!isPrepared) await verifyPrepared(deps, organizationId, id, settings)
  return { status: 'connected', qr: null, message: null }
}

const without = (channels: readonly ChannelSettings[], channel: string) =>
  channels.filter((other) => other.channel !== channel)

/**
 * Puts what is given on top of what is stored at that moment, so that two who connect at once lose nothing of each other
 * and nobody brings back what was forgotten meanwhile.
 */
async function configureChannel(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  { channel, given }: { channel: string; given: Record<string, unknown> },
): Promise<void> {
  let settings: ChannelSettings
  await changeConfig(deps, organizationId, id, {
    next(stored) {
      const before = stored.channels.find((other) => other.channel === channel)
      settings = { channel, enabled: true, config: settingsFrom(channel, given, before?.config ?? null) }
      return { ...stored, channels: [...without(stored.channels, channel), settings] }
    },
    store: (tx) => recordChannel(tx, deps.vault, id, settings),
    async verify(gateway, signal) {
      if (channelEntry(channel).type === 'token') await waitUntilConnected(gateway, settings, signal)
    },
    atRest: 'refuse',
  })
}

/** Has a worker put in the plugin and give the settings to the gateway, and waits for it. */
async function prepareChannel(
  { db, vault, queue }: ConnectDeps,
  row: Instance,
  settings: ChannelSettings,
  left: AbortSignal,
): Promise<'prepared' | 'still preparing'> {
  const requested = await requestChannel(db, vault, row.id, settings)
  if (!requested) {
    const status = publicStatus(row)
    throw new AppError('conflict', status === 'running' ? texts.isBusy : texts.notRunning(status))
  }
  queue.enqueue(requested)
  const read = () => findRecorded(db, row.id, settings.channel)
  const isOver = (channel: Channel | undefined) => channel?.step == null
  const after = await readUntil(await read(), isOver, read, { waitMs: prepareAtMostMs, signal: left })
  if (!isOver(after)) return 'still preparing'
  if (!after) throw new AppError('conflict', texts.isBusy) // forgotten meanwhile
  if (after.errorMessage === null) return 'prepared'
  throw new AppError(after.enabled ? 'unavailable' : 'invalid', after.errorMessage)
}

async function verifyPrepared(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  settings: ChannelSettings,
): Promise<void> {
  try {
    await deps.askGateway(organizationId, id, (gateway, signal) => waitUntilConnected(gateway, settings, signal))
  } catch (error) {
    await removeChannel(deps, organizationId, id, settings.channel)
    throw error
  }
}

/** Takes a channel and its credentials out of the instance, running or not. */
async function removeChannel(deps: ConnectDeps, organizationId: string, id: string, channel: string): Promise<void> {
  await changeConfig(deps, organizationId, id, {
    next: (stored) => ({ ...stored, channels: without(stored.channels, channel) }),
    store: (tx) => forgetChannel(tx, id, channel),
    atRest: 'store',
  })
}

/** Switches a channel off, at the next start of an instance that does not run; its credentials are kept. */
export async function disconnectChannel(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  channel: string,
): Promise<void> {
  channelEntry(channel)
  await getInstance(deps.db, organizationId, id)
  if (!(await findRecorded(deps.db, id, channel))?.enabled) return
  await changeConfig(deps, organizationId, id, {
    next: (stored) => ({
      ...stored,
      channels: stored.channels.map((other) => (other.channel === channel ? { ...other, enabled: false } : other)),
    }),
    store: (tx) => switchOff(tx, id, channel),
    atRest: 'store',
  })
}

/** Ends the session at the platform where the channel has one, and forgets the credentials. */
export async function logOutChannel(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  channel: string,
): Promise<void> {
  const { type } = channelEntry(channel)
  await getInstance(deps.db, organizationId, id)
  const recorded = await findRecorded(deps.db, id, channel)
  if (!recorded) return
  if (type === 'interactive' && isTaken(recorded)) {
    await deps.askGateway(organizationId, id, (gateway) => gateway.call('channels.logout', { channel }))
  }
  await removeChannel(deps, organizationId, id, channel)
}
