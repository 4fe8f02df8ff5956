import type { Channel, Instance } from '#database/schema.ts'
import { renderGateway, unsealChannel, unsealInstance } from '#instances/gateway/configuration.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { withoutCredentials } from '#openclaw/channel-credentials.ts'
import { type ChannelStatus, readChannelStatus } from '#openclaw/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { channelEntry, knownChannels } from './catalogue.ts'
import type { ConnectDeps } from './connect.ts'
import { type ScanState, waitForScan } from './login.ts'
import { findRecorded, isTaken, listRecorded } from './store.ts'

/** The least that OpenClaw waits. */
const scanWaitMs = 1000

export interface SeenChannel {
  channel: string
  enabled: boolean
  /** What the worker that prepares it is doing. */
  step: string | null
  /** Why preparing it failed. */
  error: string | null
  /** null while nobody can say: the instance does not run, or the channel is not prepared. */
  gateway: ChannelStatus | null
  login: ScanState | null
}

/** Whether each channel is switched on, by the caller's own overrides in the end. */
async function enabledChannels(deps: ConnectDeps, row: Instance): Promise<(recorded: Channel | undefined) => boolean> {
  const opened = await unsealInstance(deps.db, deps.vault, row)
  const { config } = renderGateway(row, opened, { baseUrls: deps.baseUrls, port: 0 })
  const rendered = isObject(config.channels) ? config.channels : {}
  return (recorded) => {
    if (!recorded) return false
    const { channel, enabled } = recorded
    const settings = rendered[channel]
    return isTaken(recorded) ? isObject(settings) && settings.enabled !== false : enabled
  }
}

/** Every channel there is, and whether the instance has it switched on. */
export async function listChannels(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
): Promise<{ channel: string; connectionType: 'token' | 'interactive'; enabled: boolean }[]> {
  const row = await getInstance(deps.db, organizationId, id)
  const recorded = new Map((await listRecorded(deps.db, id)).map((one) => [one.channel, one]))
  const isEnabled = await enabledChannels(deps, row)
  return knownChannels.map((channel) => ({
    channel,
    connectionType: channelEntry(channel).type,
    enabled: isEnabled(recorded.get(channel)),
  }))
}

/** How a channel of an instance is, by the gateway's word while it runs. Drives a login that waits for its scan. */
export async function seeChannel(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  channel: string,
): Promise<SeenChannel> {
  const { type } = channelEntry(channel)
  const row = await getInstance(deps.db, organizationId, id)
  const recorded = await findRecorded(deps.db, id, channel)
  const enabled = (await enabledChannels(deps, row))(recorded)
  const seen: SeenChannel = {
    channel,
    enabled,
    step: enabled ? (recorded?.step ?? null) : null,
    error: recorded?.errorMessage ?? null,
    gateway: null,
    login: null,
  }
  if (!isTaken(recorded) || publicStatus(row) !== 'running') return seen
  const { config } = unsealChannel(deps.vault, recorded)
  const read = async (gateway: GatewayClient) => {
    const status = await readChannelStatus(gateway, channel)
    const shown = (words: string) => withoutCredentials(words, config)
    const issues = status.issues.map(({ message, fix }) => ({
      message: shown(message),
      ...(fix !== undefined && { fix: shown(fix) }),
    }))
    return { ...status, error: status.error && shown(status.error), issues }
  }
  return deps.askGateway(organizationId, id, async (gateway) => {
    const status = await read(gateway)
    if (type !== 'interactive' || !enabled || status.connected) return { ...seen, gateway: status }
    const login = await waitForScan(gateway, channel, scanWaitMs)
    if (login.state === 'connected') return { ...seen, gateway: await read(gateway), login }
    return { ...seen, gateway: status, login }
  })
}

/** The id as it is stored. Throws conflict unless the instance has the channel switched on, and its gateway has taken it. */
export async function requireConnected(
  deps: ConnectDeps,
  organizationId: string,
  id: string,
  channel: string,
): Promise<string> {
  channelEntry(channel)
  const row = await getInstance(deps.db, organizationId, id)
  const status = publicStatus(row)
  if (status !== 'running') throw new AppError('conflict', texts.notRunning(status))
  const recorded = await findRecorded(deps.db, id, channel)
  if (!isTaken(recorded) || !recorded.enabled) throw new AppError('conflict', texts.channelOff(channel))
  return row.id
}
