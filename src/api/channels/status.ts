import type { Channel, Instance } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { renderGateway, unsealChannel, unsealInstance } from '#instances/gateway/configuration.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { withoutCredentials } from '#openclaw/config/channel-credentials.ts'
import { type ChannelStatus as GatewayChannelStatus, readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import { channelNames, getChannelDefinition, type Settings } from './catalogue.ts'
import type { ChannelDeps } from './deps.ts'
import { type ScanState, waitForScan } from './qr-login.ts'
import { findStoredChannel, isApplied, listStoredChannels } from './store.ts'

/** The shortest time that OpenClaw waits for a scan. */
const scanWaitMs = 1000

export interface ChannelStatus {
  channel: string
  enabled: boolean
  /** The current step of the preparation by a worker. */
  step: string | null
  /** The reason why the preparation failed. */
  error: string | null
  /** null while it is unknown: the instance does not run, or the channel is not prepared. */
  gateway: GatewayChannelStatus | null
  login: ScanState | null
}

/** Determines which channels are enabled. The caller's `openclaw_config` may override the stored settings. */
async function enabledChannels(
  { db, vault }: ChannelDeps,
  instance: Instance,
): Promise<(stored: Channel | undefined) => boolean> {
  const { config } = renderGateway(instance, await unsealInstance(db, vault, instance), {
    relayUrl: '',
    paths: { node: '', release: '', home: '', port: 0 },
  })
  const channels = isObject(config.channels) ? config.channels : {}
  return (stored) => {
    if (!stored) return false
    if (!isApplied(stored)) return stored.enabled
    const settings = channels[stored.channel]
    return isObject(settings) && settings.enabled !== false
  }
}

/** All channels, and whether each is enabled on the instance. */
export async function listChannels(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
): Promise<{ channel: string; connectionType: 'token' | 'interactive'; enabled: boolean }[]> {
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const rows = await listStoredChannels(deps.db, organizationId, instanceId)
  const stored = new Map(rows.map((row) => [row.channel, row]))
  const isEnabled = await enabledChannels(deps, instance)
  return channelNames.map((channel) => ({
    channel,
    connectionType: getChannelDefinition(channel).type,
    enabled: isEnabled(stored.get(channel)),
  }))
}

/**
 * The status of a channel, as the gateway of a running instance reports it. Continues a login that waits for its scan.
 */
export async function getChannelStatus(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<ChannelStatus> {
  const { type } = getChannelDefinition(channel)
  const instance = await getInstance(deps.db, organizationId, instanceId)
  const stored = await findStoredChannel(deps.db, organizationId, instanceId, channel)
  const enabled = (await enabledChannels(deps, instance))(stored)
  const status: ChannelStatus = {
    channel,
    enabled,
    step: enabled ? (stored?.step ?? null) : null,
    error: stored?.errorMessage ?? null,
    gateway: null,
    login: null,
  }
  if (!stored || !isApplied(stored) || publicStatus(instance) !== 'running') return status
  const { config } = unsealChannel(deps.vault, stored)
  return deps.askGateway(organizationId, instanceId, async (client) => {
    const gateway = await readMaskedStatus(client, channel, config)
    if (type !== 'interactive' || !enabled || gateway.connected) return { ...status, gateway }
    const login = await waitForScan(client, channel, scanWaitMs)
    if (login.state !== 'connected') return { ...status, gateway, login }
    return { ...status, gateway: await readMaskedStatus(client, channel, config), login }
  })
}

async function readMaskedStatus(
  gateway: GatewayClient,
  channel: string,
  config: Settings,
): Promise<GatewayChannelStatus> {
  const status = await readChannelStatus(gateway, channel)
  const masked = (text: string) => withoutCredentials(text, config)
  const issues = status.issues.map(({ message, fix }) => ({
    message: masked(message),
    ...(fix !== undefined && { fix: masked(fix) }),
  }))
  return { ...status, error: status.error && masked(status.error), issues }
}

/** Throws conflict unless the instance runs, has the channel enabled, and its gateway has applied it. */
export async function requireConnected(
  deps: ChannelDeps,
  organizationId: string,
  instanceId: string,
  channel: string,
): Promise<void> {
  getChannelDefinition(channel)
  await deps.findGateway(organizationId, instanceId) // wakes the agent
  const stored = await findStoredChannel(deps.db, organizationId, instanceId, channel)
  if (!stored?.enabled || !isApplied(stored)) throw new AppError('channel_not_connected', texts.channelOff(channel))
}
