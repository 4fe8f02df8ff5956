import { setTimeout as sleep } from 'node:timers/promises'
import { withoutCredentials } from '#openclaw/channel-credentials.ts'
import { readChannelStatus } from '#openclaw/channel-status.ts'
import type { ChannelSettings } from '#openclaw/config.ts'
import { type GatewayClient, GatewayRefusal } from '#openclaw/gateway.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { channelEntry } from './catalogue.ts'

const waitAtMostMs = 30_000
const pauseMs = 500
/** An error that stands for so long is the answer: OpenClaw goes on trying, the caller does not wait for it. */
const standingErrorMs = 5000

/**
 * Waits until a channel is up. Throws invalid when the platform refuses the credentials or OpenClaw wants more of them,
 * and gateway_unreachable when the platform cannot be reached or the channel does not come up within 30 s, both with the
 * gateway's words.
 */
export async function waitUntilConnected(
  gateway: GatewayClient,
  { channel, config }: Pick<ChannelSettings, 'channel' | 'config'>,
  signal: AbortSignal,
): Promise<void> {
  const { title } = channelEntry(channel)
  const deadline = performance.now() + waitAtMostMs
  let failingSince: number | undefined
  for (let started = false; ; await sleep(pauseMs, undefined, { signal })) {
    const status = await readChannelStatus(gateway, channel)
    if (status.connected) return
    const { configured, refused, running } = status
    const error = status.error && withoutCredentials(status.error, config)
    if (refused && configured)
      throw new AppError('invalid', texts.channelNotConnected(title, error ?? 'no reason given'))
    if (refused) throw new AppError('invalid', texts.channelUnconfigured(title))
    if (!running && !started) {
      started = true // one that was stopped or logged out stays so until it is told to start
      await startChannel(gateway, channel)
      continue
    }
    const now = performance.now()
    failingSince = error === null ? undefined : (failingSince ?? now)
    if (now >= deadline || (failingSince !== undefined && now - failingSince >= standingErrorMs)) {
      throw new AppError('gateway_unreachable', texts.channelNotConnected(title, error ?? 'it is still starting'))
    }
  }
}

/** The gateway's answer to it says nothing that the status does not. */
async function startChannel(gateway: GatewayClient, channel: string): Promise<void> {
  await gateway.call('channels.start', { channel }).catch((error: unknown) => {
    if (!(error instanceof GatewayRefusal)) throw error
  })
}
