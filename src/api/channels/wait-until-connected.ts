import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { withoutCredentials } from '#openclaw/config/channel-credentials.ts'
import type { ChannelSettings } from '#openclaw/config/config.ts'
import { readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { poll } from '#platform/poll.ts'
import { getChannelDefinition } from './catalogue.ts'

const timeoutMs = 30_000
const pauseMs = 500
/** OpenClaw retries for ever. An error that persists for this long is returned to the caller. */
const maxErrorMs = 5000

/**
 * Waits until a channel is connected, and starts it if it does not run. Throws invalid when the platform refuses the
 * credentials or some are missing, and gateway_unreachable when the platform cannot be reached or the channel is not
 * connected within 30 s. Both quote the gateway.
 */
export async function waitUntilConnected(
  gateway: GatewayClient,
  { channel, config }: Pick<ChannelSettings, 'channel' | 'config'>,
  signal: AbortSignal,
): Promise<void> {
  const { title } = getChannelDefinition(channel)
  const unreachable = (reason: string) => new AppError('channel_unreachable', texts.channelNotConnected(title, reason))
  let isStarted = false
  let failingSince: number | undefined
  let error: string | null = null

  const isConnected = async () => {
    const status = await readChannelStatus(gateway, channel)
    if (status.connected) return true
    const { configured, refused, running } = status
    error = status.error && withoutCredentials(status.error, config)
    if (refused && !configured) throw new AppError('invalid_value', texts.channelUnconfigured(title))
    if (refused) throw new AppError('channel_refused', texts.channelNotConnected(title, error ?? 'no reason given'))
    if (!running && !isStarted) {
      isStarted = true // a channel that was stopped or logged out does not start by itself
      await startChannel(gateway, channel)
      return false
    }
    failingSince = error === null ? undefined : (failingSince ?? performance.now())
    if (error !== null && failingSince !== undefined && performance.now() - failingSince >= maxErrorMs) {
      throw unreachable(error)
    }
    return false
  }
  if (!(await poll(isConnected, { pauseMs, timeoutMs, signal }))) throw unreachable(error ?? 'it is still starting')
}

/**
 * Starts a channel that does not run, also one that OpenClaw left out after unclean ends; one that runs is not changed.
 * Ignores a refusal: the status carries the same information. Throws GatewayUnreachable.
 */
export async function startChannel(gateway: GatewayClient, channel: string): Promise<void> {
  await gateway.call('channels.start', { channel }).catch((error: unknown) => {
    if (!(error instanceof GatewayRefusal)) throw error
  })
}
